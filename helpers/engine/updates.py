"""What training did to the weights: the singular values of the update of some layers, for any method.

For LoRA the update is (alpha / r) B A, of rank r at most (arXiv:2106.09685); for full fine-tuning it is the tuned
weight less the one in the base model's files. How fast its singular values fall says how much a low rank could hold.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base_tensor(folder: Path, name: str) -> torch.Tensor:
    """One weight out of a base model's safetensors files, in fp32.

    Raises:
        KeyError: if no file holds it.
    """
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                return tensors.get_tensor(name).float()
    raise KeyError(f"{name} is in no *.safetensors file of {folder}")


def _delta(model, folder: Path, name: str, exact: dict) -> torch.Tensor | None:
    if isinstance(model, PeftModel):
        module = model.get_base_model().get_submodule(name)
        if not hasattr(module, "get_delta_weight"):
            return None
        return module.get_delta_weight(module.active_adapters[0]).float()
    weight = exact.get(f"{name}.weight", model.get_submodule(name).weight)
    return weight.detach().float() - base_tensor(folder, f"{name}.weight").to(weight.device)


def weight_updates(model, folder: Path, layers: int = 3, exact: dict[str, torch.Tensor] | None = None) -> list[dict]:
    """Singular values of the update of each linear type in a few decoder layers, spread from first to last.

    Args:
        model: the tuned model, full or with its adapter, before it is merged.
        folder: of the base model.
        layers: how many decoder layers to look at.
        exact: trained weights by name where they are known to more digits than the model holds.

    Returns:
        For each weight: ``layer`` ("12.q_proj"), ``ranks`` (1, 2, 4, ... and the last), the ``singular_values`` at those
        ranks, ``energy`` (the share of the squared Frobenius norm that the best product of each rank holds,
        Eckart and Young 1936) and ``relative_norm`` (of the update against the base weight).
    """
    total = model.config.num_hidden_layers
    chosen = (
        sorted({round(i * (total - 1) / max(layers - 1, 1)) for i in range(layers)}) if layers > 1 else [total // 2]
    )
    found = []
    for index in chosen:
        for kind in LINEARS:
            block = "self_attn" if kind in LINEARS[:4] else "mlp"
            name = f"model.layers.{index}.{block}.{kind}"
            with torch.no_grad():
                delta = _delta(model, folder, name, exact or {})
                if delta is None:
                    continue
                values = torch.linalg.svdvals(delta)
                squared = values.double() ** 2
                energy = (squared.cumsum(0) / squared.sum().clamp_min(1e-300)).tolist()
                norm = (delta.norm() / base_tensor(folder, f"{name}.weight").norm()).item()
            ranks = [2**k for k in range(20) if 2**k <= len(values)]
            ranks += [len(values)] * (ranks[-1] != len(values))
            found.append({
                "layer": f"{index}.{kind}", "ranks": ranks, "relative_norm": float(f"{norm:.4g}"),
                "singular_values": [float(f"{values[r - 1].item():.4g}") for r in ranks],
                "energy": [round(energy[r - 1], 5) for r in ranks],
            })  # fmt: skip
    return found
