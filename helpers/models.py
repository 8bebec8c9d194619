"""Loading and saving models: tokenizers, base models, adapters, and the results of finished runs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.device import World
from helpers.memory import Shape, target_names
from helpers.records import FILE_NAME, read_json
from helpers.settings import Settings, shown
from helpers.sources import Base, ModelError, check_adapter, check_files, check_loaded, check_replaceable, resolve
from helpers.sources.manifest import quiet, reading, write_manifest
from helpers.sources.templates import LLAMA2_TEMPLATE

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:  # importing peft takes as long as all the rest: only where an adapter is made or read
    from peft import LoraConfig, PeftModel

BASE_FILE = "base.json"  # beside an adapter: which base it was trained on
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": "auto"}  # "auto": as in the files
MADE_BY = {"lora": "02_lora_train", "full": "03_full_train", "qlora": "06_qlora"}
MADE_BY |= dict.fromkeys(("grpo", "dpo"), "11_after_sft")  # dora and rslora: by no notebook


def load_tokenizer(base: Base):
    """The tokenizer of a base model, with a padding token and a chat template (Llama 2's for Llama 2 without one).

    A ModelError says that its files cannot be read, or that the model has no chat template.
    """
    with reading(base.folder):
        tokenizer = AutoTokenizer.from_pretrained(base.folder, trust_remote_code=False)
    if tokenizer.chat_template is None and "llama-2-7b-chat" in base.name.lower():
        tokenizer.chat_template = LLAMA2_TEMPLATE
    if tokenizer.chat_template is None:
        raise ModelError(f"{base.name} has no chat template: choose a chat or instruct model")
    if tokenizer.pad_token is None:  # labels are masked by position, so padding with EOS would be safe too
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def read_model(folder: Path, precision: str = "auto", attention: str = "eager", **options):
    """A causal language model as its files say: every file compared with its hash, every weight found in them."""
    check_files(folder)
    options |= {"dtype": DTYPES[precision], "attn_implementation": attention}
    with quiet(), reading(folder):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"the weights in {shown(folder)} lack {', '.join(missing[:3])}{' and others' if missing[3:] else ''}, which "
            "would be filled with random numbers: fetch or save the model again"
        )
    return model


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


def decoder_blocks(model) -> torch.nn.ModuleList:
    """The blocks of a decoder, whatever its family calls them: the longest list of modules, right inside it or deeper."""
    decoder = model.get_decoder()
    right_inside, anywhere = (
        [module for module in modules if isinstance(module, torch.nn.ModuleList)]
        for modules in (decoder.children(), decoder.modules())
    )
    return max(right_inside or anywhere, key=len)


def load_base(
    base: Base,
    precision: str = "bf16",
    attention: str = "eager",
    device: str = "cpu",
    four_bit: bool = False,
    world: World | None = None,
):
    """The untouched base model, read anew from its files, never a model that something else may have changed.

    Args:
        precision: "bf16" or "fp32", of the arithmetic and of the weights.
        device: "cpu" or "cuda:0".
        four_bit: quantise the linear layers to NF4 while loading, as QLoRA does.
        world: shard the model: each of these processes reads its own part of every weight (FSDP2).

    Raises:
        ModelError: for a damaged folder, or a tokenizer that knows more tokens than the model.
    """
    options: dict = {"device_map": device}
    if world:
        from transformers.distributed import DistributedConfig

        parts = {"fsdp_size": world.size, "fsdp_mixed_precision": precision == "bf16"}  # gradients add up in fp32
        options = {"distributed_config": DistributedConfig(**parts)}
    if four_bit:
        from transformers import BitsAndBytesConfig

        dtype = DTYPES[precision]
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    model = read_model(base.folder, precision, attention, **options)
    for layer in model.modules() if device == "cpu" else ():
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # bitsandbytes' path for inference on a CPU rewrites the 4-bit
            layer.support_avx512bf16_for_cpu = False  # weights in place, without the double quantisation
    known, rows = len(load_tokenizer(base)), model.get_input_embeddings().num_embeddings
    if known > rows:
        raise ModelError(f"the tokenizer of {base.name} knows {known} tokens, the model only {rows}")
    return model


def adapter_config(settings: Settings, shape: Shape | None = None) -> LoraConfig:
    """The PEFT configuration of a method; dora and rslora are switches of LoRA."""
    from peft import LoraConfig

    targets = settings.targets if settings.targets == "all-linear" else settings.targets.split(",")
    if shape:  # one by one: PEFT would extend "all-linear" to the router and the experts of a mixture
        targets = target_names(shape, settings.targets)
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_dora=settings.method == "dora",
        use_rslora=settings.method == "rslora",
        task_type="CAUSAL_LM",
    )


def to_train(model, settings: Settings, precision: str, adapter: LoraConfig | None = None):
    """The model with the adapter of its method, unless it carries one; what is trained is in the arithmetic's precision."""
    from peft import PeftModel, get_peft_model

    if settings.method != "full" and not isinstance(model, PeftModel):
        config = adapter or adapter_config(settings, Shape.of(model.config))
        try:
            model = get_peft_model(model, config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise ModelError(f"PEFT cannot adapt this model: {' '.join(str(error).split())}") from None
        if adapter is None and config.target_parameters:
            raise ModelError(
                f"PEFT takes some of the layers named {settings.targets} for the experts of this mixture and would adapt "
                f"those instead: set targets to {','.join(sorted(config.target_modules))}"
            )
    if precision == "bf16":
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight.data = weight.data.to(torch.bfloat16)
    return model


def save_adapter(model: PeftModel, base: Base, folder: Path) -> None:
    """Save an adapter together with the fingerprint of the base it belongs to, and a manifest of hashes."""
    # otherwise PEFT looks for the base where the adapter was made, on the hub at last, and warns
    model.save_pretrained(folder, save_embedding_layers=False)
    facts = {"model": base.name, "revision": base.revision, "fingerprint": base.fingerprint}
    (folder / BASE_FILE).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    write_manifest(folder)


def load_adapter(model, base: Base, folder: Path, name: str = "default", trainable: bool = False) -> PeftModel:
    """Put a saved adapter on a freshly loaded base, or beside the adapters that it carries. The base is changed in place.

    Args:
        name: of this adapter on the model; it is the active one afterwards.
        trainable: continue to train it; its weights are then fp32, whatever the precision of the base.

    Raises:
        ModelError: if the folder holds no adapter, a damaged one, or one that was trained on another base.
    """
    from peft import PeftModel

    tensors = check_adapter(folder)
    if (folder / BASE_FILE).is_file() and (found := base_of(folder))["fingerprint"] != base.fingerprint:
        raise ModelError(
            f"the adapter in {shown(folder)} was trained on {found['model']} (weights {found['fingerprint']}), not on "
            f"{base.name} as it is here: on another base it would load and answer nonsense"
        )
    dtype = model.get_input_embeddings().weight.dtype
    with quiet(), reading(folder):
        if isinstance(model, PeftModel):
            model.load_adapter(folder, name, autocast_adapter_dtype=False)
            model.set_adapter(name)
        else:
            model = PeftModel.from_pretrained(model, folder, name, trainable, autocast_adapter_dtype=trainable)
        check_loaded(model, name, tensors, folder)
    if not trainable:  # on 4-bit weights they would be fp32, and not as they were trained and evaluated
        for weight in (p for name, p in model.named_parameters() if "lora_" in name):
            weight.data = weight.data.to(dtype)
    return model


def base_of(folder: Path) -> dict:
    """Which base an adapter was trained on: model, revision and fingerprint."""
    return read_json(folder / BASE_FILE, ModelError, {"model": str, "fingerprint": str})


def finished_folder(settings: Settings) -> Path:
    """The folder of a finished run of this profile, method and seed; a ModelError names the notebook that makes it."""
    if not (settings.folder / FILE_NAME).is_file():
        notebook = MADE_BY.get(settings.method)
        remedy = (
            f"run {notebook} with these parameters first, or continue with a shipped one: from helpers.workshop import "
            f'catch_up; catch_up("{notebook}", settings)'
        )
        remedy = remedy if notebook else "make it with helpers.training.train, or with notebooks/cluster/train.py"
        raise ModelError(f"there is no finished {settings.method} run in {shown(settings.folder)}: {remedy}")
    return settings.folder


def load_trained(settings: Settings, precision: str = "bf16", attention: str = "eager", device: str = "cpu"):
    """The result of a finished run: a fully tuned model, or an adapter on a freshly loaded base, by ``settings.method``."""
    folder = finished_folder(settings)
    if settings.method == "full":
        return read_model(folder / "model", precision, attention, device_map=device)
    base = resolve(settings)
    model = load_base(base, precision, attention, device, four_bit=settings.method == "qlora")
    return load_adapter(model, base, folder / "adapter")


def save_model(model, tokenizer, folder: Path, shard_size: str = "5GB") -> None:
    """Save a whole model as safetensors shards with its tokenizer and a manifest of hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(folder, max_shard_size=shard_size)
        tokenizer.save_pretrained(folder)
    write_manifest(folder)


def load_saved(folder: Path, attention: str = "eager", device: str = "cpu"):
    """A saved model and its tokenizer, as any user would load them, in the precision they were saved in.

    A ModelError says that the folder holds no model, or a damaged one.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no saved model in {shown(folder)}")
    model = read_model(folder, "auto", attention, device_map=device)
    with reading(folder):
        return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def on_dequantised(settings: Settings, device: str = "cpu"):
    """A QLoRA adapter on the numbers that its 4-bit base stands for, held in fp32."""
    folder, base = finished_folder(settings), resolve(settings)
    with quiet():
        model = load_base(base, "fp32", "eager", device, four_bit=True).dequantize()
    return load_adapter(model, base, folder / "adapter")


def merge(settings: Settings, folder: Path, device: str = "cpu") -> None:
    """Merge the adapter of a finished run into its base, in fp32, and save the sum in bf16 as a whole model.

    The base of a QLoRA adapter is the 4-bit one it was trained on: it is dequantised, and the adapter added to it.

    Raises:
        ModelError: if the run has not finished, or the folder holds something that this project did not write.
    """
    check_replaceable(folder)
    if settings.method == "qlora":
        merged = on_dequantised(settings, device).merge_and_unload()
    else:
        merged = load_trained(settings, "fp32", "eager", device).merge_and_unload()
    for weight in merged.parameters():  # not model.to(): that would round the rotary frequencies too
        weight.data = weight.data.to(torch.bfloat16)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        save_model(merged, load_tokenizer(resolve(settings)), Path(temporary) / "merged")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(Path(temporary) / "merged", folder)
