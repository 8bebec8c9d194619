"""What an adapter has to hold before it is used: PEFT itself loads one with missing, renamed or broken tensors silently."""

from __future__ import annotations

from pathlib import Path

from helpers.records import read_json
from helpers.settings import shown
from helpers.sources.manifest import ModelError, check_files, reading

from safetensors import safe_open

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_adapter(folder: Path) -> set[str]:
    """Check the files of an adapter before anything loads them, with or without a manifest; the names of its tensors.

    Raises:
        ModelError: for files that are missing or damaged, other formats and kinds, another rank, numbers that are not finite.
    """
    if not (folder / CONFIG).is_file():
        raise ModelError(f"there is no adapter in {shown(folder)}: run 02_lora_train with this profile first")
    check_files(folder)
    config = read_json(folder / CONFIG, ModelError, {"peft_type": str, "r": int})
    if config["peft_type"] != "LORA":
        raise ModelError(
            f"{shown(folder)} holds an adapter of the kind {config['peft_type'][:80]!r}; only LoRA is read here"
        )
    if not (folder / WEIGHTS).is_file():
        others = ", ".join(f.name for f in folder.glob("*.bin")) or "no weights"
        raise ModelError(f"{shown(folder)} holds {others} but no {WEIGHTS}; other formats are not loaded")
    with reading(folder), safe_open(folder / WEIGHTS, "pt") as file:
        names, ranks = set(file.keys()), {0}
        for name in names:
            weight = file.get_tensor(name)
            if not weight.isfinite().all():
                raise ModelError(
                    f"{name} in {shown(folder)} holds numbers that are not finite; train the adapter again"
                )
            if name.endswith("lora_A.weight"):
                ranks.add(len(weight))
        rank = max(config["r"], *(config.get("rank_pattern") or {}).values(), 1)
        if rank > max(ranks):  # PEFT would ask for memory for it; it finds a smaller one itself
            raise ModelError(f"{CONFIG} in {shown(folder)} says rank {rank}, and its weights have {max(ranks)}")
    return names


def check_loaded(model, adapter: str, names: set[str], folder: Path) -> None:
    """Check that the names of an adapter's tensors, from :func:`check_adapter`, are those that the PEFT model needs."""
    from peft import get_peft_model_state_dict  # slow, and only needed here

    needed = set(get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False))
    for wrong, what in ((needed - names, "lacks {}, which would stay untrained"), (names - needed, "holds {}, unused")):
        if wrong:
            raise ModelError(f"the adapter in {shown(folder)} does not fit this base: it {what.format(min(wrong))}")
