"""Loading base models, tokenizers and adapters, and the plan of how a run uses this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from helpers.device import Device, decide, describe, quiet
from helpers.engine import distributed
from helpers.engine.updates import base_tensor
from helpers.memory import Prediction, Shape, predict
from helpers.settings import Settings, shown
from helpers.sources.base_models import (
    LLAMA2_TEMPLATE,
    ModelError,
    base_fingerprint,
    base_folder,
    check_files,
    reading,
    revision_of,
    write_manifest,
)

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

BASE_FILE = "base.json"  # beside an adapter: which base it was trained on


def load_tokenizer(settings: Settings):
    """The tokenizer of the base model, with a padding token and a chat template (Llama 2's for Llama 2 without one).

    Raises:
        ModelError: if its files cannot be read, or the model has no chat template.
    """
    with reading(folder := base_folder(settings)):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None and "llama-2-7b-chat" in settings.model.lower():
        tokenizer.chat_template = LLAMA2_TEMPLATE
    if tokenizer.chat_template is None:
        raise ModelError(f"{settings.model} has no chat template: choose a chat or instruct model")
    if tokenizer.pad_token is None:  # labels are masked by position, so padding with EOS would be safe too
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def read_model(folder: Path, **options):
    """A causal language model as its files say, every file compared with its hash and every weight found in them.

    Args:
        options: for ``from_pretrained``.

    Raises:
        ModelError: for files that are damaged or lack a weight, which transformers would fill with random numbers.
    """
    check_files(folder)
    with quiet(), reading(folder):
        model, told = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options
        )
    if missing := sorted(told["missing_keys"]):
        raise ModelError(
            f"the weights in {shown(folder)} lack {', '.join(missing[:3])}{' and others' if missing[3:] else ''}, which "
            "would be filled with random numbers: fetch or save the model again"
        )
    return model


def load_base(settings: Settings, precision: str = "bf16", attention: str = "eager", device: str = "cpu"):
    """The untouched base model, read anew from its files, never a model that something else may have changed.

    Args:
        precision: of the arithmetic and of the weights; ``qlora`` quantises the linear layers to NF4 while loading.
        device: "cpu" or "cuda:0"; where helpers.engine.distributed shards the model, each process reads its own part.

    Raises:
        ModelError: for a damaged folder, or a tokenizer that knows more tokens than the model.
    """
    folder = base_folder(settings)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    extra = {"device_map": device}
    if distributed.sharded(settings):
        extra = {"distributed_config": distributed.shards(precision)}
    if settings.method == "qlora":
        from transformers import BitsAndBytesConfig

        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    model = read_model(folder, dtype=dtype, attn_implementation=attention, **extra)
    for layer in model.modules() if device == "cpu" else ():
        if hasattr(layer, "support_avx512bf16_for_cpu"):  # bitsandbytes' path for inference on a CPU rewrites the 4-bit
            layer.support_avx512bf16_for_cpu = False  # weights in place, without the double quantisation
    known, rows = len(AutoTokenizer.from_pretrained(folder)), model.get_input_embeddings().num_embeddings
    if known > rows:
        raise ModelError(f"the tokenizer of {settings.model} knows {known} tokens, the model only {rows}")
    return model


@dataclass(frozen=True)
class Plan:
    """How a run will use this machine: the device, the choices with their reasons, the predicted memory."""

    device: Device
    shape: Shape
    decisions: dict[str, dict]
    predicted: Prediction

    def value(self, name: str):
        """What was decided for a name, without the reason."""
        return self.decisions[name]["value"]

    @property
    def attention(self) -> str:
        """The attention to load a model with: varlen serves training only, which sets it itself."""
        return "sdpa" if self.value("attention") == "varlen" else self.value("attention")

    def load(self, settings: Settings):
        """The base model as planned: precision, attention, device."""
        return load_base(settings, self.value("precision"), self.attention, self.device.torch_name)


def plan(settings: Settings, longest: int | None = None) -> Plan:
    """Decide how to use this machine for a run of rows up to ``longest`` tokens (by default ``max_length``)."""
    with reading(folder := base_folder(settings)):
        device, shape = describe(), Shape.of(AutoConfig.from_pretrained(folder))
    rows = {"batch": 1, "length": settings.batch_tokens} if settings.batch_tokens else {
        "batch": distributed.share(settings)[0], "length": longest or settings.max_length}  # fmt: skip
    usual = {name: choice["value"] for name, choice in decide(settings, device, 0).items()}
    sizes = rows | {"rank": settings.rank, "targets": settings.targets, "dropout": settings.dropout} | {
        name: usual[name] for name in ("precision", "attention")}  # fmt: skip
    sizes |= {"fused": usual["kernels"] == "liger" or usual["compile"],
              "shards": distributed.processes() if distributed.sharded(settings) else 1}  # fmt: skip
    kept = predict(shape, settings.method, **sizes)
    decisions = decide(settings, device, kept.total)
    predicted = predict(shape, settings.method, **sizes, checkpointing=decisions["checkpointing"]["value"])
    return Plan(device, shape, decisions, predicted)


def adapter_config(settings: Settings) -> PeftConfig:
    """The PEFT configuration of a method.

    dora and rslora are switches of LoRA; adalora shares ranks out by use; pissa starts from the largest directions of
    each weight, found by a randomised decomposition, and leaves the rest of the weight frozen (arXiv:2404.02948).
    """
    targets = settings.targets if settings.targets == "all-linear" else settings.targets.split(",")
    common = {
        "lora_alpha": settings.alpha, "lora_dropout": settings.dropout, "target_modules": targets, "bias": "none",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip
    if settings.method == "adalora":
        from peft import AdaLoraConfig

        return AdaLoraConfig(
            init_r=settings.rank + settings.rank // 2, target_r=settings.rank, total_step=settings.max_steps,
            tinit=settings.max_steps // 10, tfinal=settings.max_steps // 3, **common,
        )  # fmt: skip
    return LoraConfig(
        r=settings.rank, use_dora=settings.method == "dora", use_rslora=settings.method == "rslora",
        init_lora_weights="pissa_niter_16" if settings.method == "pissa" else True, **common,
    )  # fmt: skip


def to_train(model, settings: Settings, precision: str, adapter: PeftConfig | None = None):
    """The model with the adapter of its method, if it has one; what is trained is in the precision of the arithmetic.

    The optimizer keeps the fp32 masters. A model that carries an adapter already is left with it.
    """
    if settings.adapter and not isinstance(model, PeftModel):
        model = get_peft_model(model, adapter or adapter_config(settings), autocast_adapter_dtype=False)
    if precision == "bf16":
        for weight in (p for p in model.parameters() if p.requires_grad):
            weight.data = weight.data.to(torch.bfloat16)
    return model


def split_base(model: PeftModel, folder: Path) -> None:
    """Take out of each adapted weight what its new PiSSA adapter holds. PEFT did so before the adapter was rounded.

    Args:
        folder: of the base model.
    """
    for name, layer in adapted_layers(model):
        rest = layer.get_base_layer().weight
        whole = base_tensor(folder, f"{name}.weight").to(rest.device)
        rest.data = (whole - adapter_product(layer)).to(rest.dtype)


def adapted_layers(model: PeftModel) -> list[tuple[str, torch.nn.Module]]:
    """Names in the base model, and layers, that carry a LoRA adapter."""
    return [(n, m) for n, m in model.get_base_model().named_modules() if hasattr(m, "get_delta_weight")]


def adapter_product(layer: torch.nn.Module) -> torch.Tensor:
    """alpha / r times B A of one layer, in fp32."""
    return layer.scaling["default"] * (layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float())


def save_start(model: PeftModel, folder: Path) -> None:
    """Keep the adapter that PiSSA starts from: without it, the trained one cannot be put on the untouched base."""
    config = model.peft_config["default"]
    kept, config.init_lora_weights = config.init_lora_weights, True  # what is in the file is final, not to be derived
    model.save_pretrained(folder)
    config.init_lora_weights = kept


def save_adapter(model: PeftModel, settings: Settings, folder: Path, start: Path | None = None) -> None:
    """Save an adapter together with the fingerprint of the base it belongs to, and a manifest of hashes.

    Args:
        start: the folder of `save_start`. The adapter is then saved as its difference from that start, a plain LoRA of
            twice the rank for the untouched base.
    """
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=start and str(start))
    base = {
        "model": settings.model,
        "revision": revision_of(settings),
        "fingerprint": base_fingerprint(base_folder(settings)),
    }
    (folder / BASE_FILE).write_text(json.dumps(base, indent=1), encoding="utf-8")
    write_manifest(folder)


def load_adapter(model, settings: Settings, folder: Path) -> PeftModel:
    """Put a saved adapter on a freshly loaded base. The base is changed in place: load another to compare.

    Raises:
        ModelError: if the folder holds no adapter, a damaged one, or one that was trained on another base.
    """
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"there is no adapter in {shown(folder)}; run 02_lora_train with this profile first")
    check_files(folder)
    if (folder / BASE_FILE).is_file():
        expected = json.loads((folder / BASE_FILE).read_text(encoding="utf-8"))
        if expected["fingerprint"] != base_fingerprint(base_folder(settings)):
            raise ModelError(
                f"the adapter in {shown(folder)} was trained on {expected['model']} (weights {expected['fingerprint']}), not on "
                f"{settings.model} as it is here: on another base it would load and answer nonsense"
            )
    dtype = model.get_input_embeddings().weight.dtype
    with quiet(), reading(folder):
        model = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False)
    for name, weight in model.named_parameters():
        if "lora_" in name:  # on 4-bit weights they would be fp32, and not as they were trained and evaluated
            weight.data = weight.data.to(dtype)
    return model


def folder_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder, by its path inside, largest first."""
    sizes = {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*") if f.is_file()}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))
