"""What this machine is and how a run will use it: vendor, architecture, memory, precision, attention.

ROCm answers through ``torch.cuda`` as CUDA does. This file was run on NVIDIA GPUs and on CPUs, on no ROCm device.
"""

from __future__ import annotations

import hashlib
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from helpers.memory import GB, Prediction, Shape, predict, target_names
from helpers.settings import Settings, SettingsError

import psutil
import torch
import torch.nn.functional as F

# SDPA is kept away from cuDNN, which plans each new shape before it computes: about 0.4 s for a training batch and 0.04 s
# for a generated token on one NVIDIA H200 (2026-11-22, "cudnn" in helpers/reference/speed-7b.json). Ragged rows bring a
# new shape in nearly every step, and generation brings one with every token.
torch.backends.cuda.enable_cudnn_sdp(False)

CPU_FACTS = ("cpu family", "model", "stepping", "cpu MHz", "cpu cores", "instruction sets")  # they tell apart namesakes


@dataclass(frozen=True)
class World:
    """Which process this is among those that train together, one for each device."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process saves, evaluates and shows progress."""
        return self.rank == 0


@dataclass(frozen=True)
class Device:
    """The device that a run uses. Memory is in bytes; what does not apply is None."""

    kind: str  # "rocm", "cuda" or "cpu"
    name: str
    architecture: str | None  # gfx942, sm_90, x86_64
    count: int  # visible devices of this kind; a process uses one of them
    total_memory: int
    free_memory: int
    runtime: str | None  # "ROCm 7.1", "CUDA 13.0"
    bf16: bool
    detail: str | None = None  # of a CPU: what tells it from others of the same name

    @property
    def torch_name(self) -> str:
        """The device string that torch understands."""
        return "cpu" if self.kind == "cpu" else f"cuda:{own_gpu()}"


def own_gpu() -> int:
    """The number of this process's GPU: the one a launcher gave it (helpers.engine.distributed), otherwise the first."""
    return int(os.environ.get("LOCAL_RANK", 0))


def describe() -> Device:
    """The present machine as torch sees it, with this process's GPU; the count says if more are visible."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(own_gpu())
        free, total = torch.cuda.mem_get_info(own_gpu())
        hip = torch.version.hip
        return Device(
            kind="rocm" if hip else "cuda",
            name=properties.name,
            architecture=properties.gcnArchName.split(":")[0] if hip else f"sm_{properties.major}{properties.minor}",
            count=torch.cuda.device_count(),
            total_memory=total,
            free_memory=min(free, total),  # where GPU and CPU share memory, HIP may report more free than there is
            runtime=f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}",
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        )
    memory, facts, threads = psutil.virtual_memory(), _cpu_facts(), torch.get_num_threads()
    name = facts.get("model name") or platform.processor() or platform.machine()
    return Device(
        kind="cpu",
        name=f"{name}, {threads} thread{'s' * (threads != 1)}",
        architecture=platform.machine(),
        count=1,
        total_memory=memory.total,
        free_memory=memory.available,
        runtime=None,
        # whether it multiplies bf16 numbers itself; otherwise torch only imitates it, slower than fp32
        bf16=not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(facts.get("flags", "").split()),
        detail=", ".join(f"{fact} {facts[fact]}" for fact in CPU_FACTS if fact in facts),
    )


def _cpu_facts() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    facts["flags"] = " ".join(sorted((facts.get("flags") or facts.get("Features") or "").split()))
    return facts | {"instruction sets": hashlib.sha256(facts["flags"].encode()).hexdigest()[:8]}


def varlen(query, key, value, bounds, longest: int, scale: float | None = None, window: int | None = None):
    """torch's kernel on (tokens, heads, features), causal; a token sees itself and the ``window`` - 1 before it, or all."""
    from torch.nn.attention.varlen import varlen_attn

    left = window - 1 if window else -1
    return varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=(left, 0))


@lru_cache
def varlen_probe(device: str) -> str | None:
    """Try the kernel on two short rows and compare with plain attention; None if right, else what went wrong."""
    if device == "cpu":
        return "torch has this kernel for GPUs only"
    try:
        lengths, bounds = (5, 11), torch.tensor([0, 5, 16], dtype=torch.int32, device=device)
        with torch.random.fork_rng(devices=[]):
            q, k, v = (torch.randn(16, 2, 64).to(device, torch.bfloat16).requires_grad_() for _ in range(3))
        rows = zip(*(x.float().transpose(0, 1).split(lengths, dim=1) for x in (q, k, v)), strict=True)
        plain = torch.cat([F.scaled_dot_product_attention(*row, is_causal=True) for row in rows], dim=1).transpose(0, 1)
        outputs = varlen(q, k, v, bounds, max(lengths)).float(), plain
        gradients = (torch.autograd.grad(out.square().sum(), q)[0].float() for out in outputs)
        errors = torch.stack([(a - b).abs().max() for a, b in (outputs, gradients)])
        error = errors.max().item()  # NaN if there is one in either, unlike Python's max
        return None if error < 0.1 else f"its result is off by {error:.2g}"
    except (ImportError, RuntimeError, NotImplementedError, TypeError, AssertionError) as problem:
        return f"{type(problem).__name__}: {str(problem).splitlines()[0][:100]}"


def decide(settings: Settings, device: Device, peak_without_checkpointing: int) -> dict[str, dict]:
    """How to use the device: precision, attention, kernels, products, compiling and checkpointing, with reasons.

    Args:
        settings: a value other than None is your choice and is kept.
        peak_without_checkpointing: predicted bytes, from :mod:`helpers.memory`.

    Returns:
        ``{"precision": {"value": "bf16", "why": ...}, "attention": ..., "checkpointing": ...}``
    """
    needs = f"predicted {peak_without_checkpointing / GB:.1f} GB against {device.free_memory / GB:.1f} GB free"
    chosen = {
        "precision": ("fp32", "this device has no bf16 arithmetic of its own"),
        "attention": ("eager", "on short rows, plain matrix products train faster on a CPU than SDPA"),
        "kernels": ("torch", "fused kernels exist for GPUs only"),
        "products": ("plain", "matrix products run in the precision of the weights"),
        "compile": (False, "compiling takes longer than a short run can win back"),
        "loss": ("fast", "of the supervised tokens alone, where that equals the model's own loss"),
        "checkpointing": (peak_without_checkpointing > 0.9 * device.free_memory, needs),
    }
    if device.bf16:
        chosen["precision"] = ("bf16", "this device multiplies bf16 natively, at least twice as fast as fp32")
    if device.kind != "cpu":
        why = "torch's variable-length kernel passed its check: rows lie end to end, unpadded"
        chosen["attention"] = ("varlen", why)
        if wrong := varlen_probe(device.torch_name):
            chosen["attention"] = ("sdpa", f"torch's variable-length kernel is not usable here ({wrong})")
        chosen["kernels"] = ("liger", "norms, rotations and gates take one pass over memory each")
        if settings.compile or not find_spec("liger_kernel"):
            why = "each layer is compiled" if settings.compile else "the package liger-kernel is not installed"
            chosen["kernels"] = ("torch", why)
    yours = {name: (getattr(settings, name, None), "set by you") for name in chosen}
    chosen |= {name: choice for name, choice in yours.items() if choice[0] is not None}
    return {name: {"value": value, "why": why} for name, (value, why) in chosen.items()}


@dataclass(frozen=True)
class Plan:
    """How a run will use this machine: the device, the choices with their reasons, the predicted memory."""

    device: Device
    decisions: dict[str, dict]
    predicted: Prediction
    world: World
    sharded: bool  # whether each process holds a part of the model, not a whole one

    def value(self, name: str):
        """The value decided for a name, without the reason."""
        return self.decisions[name]["value"]

    @property
    def loading(self) -> dict[str, str]:
        """How to load a model: precision, attention and device. varlen is for training only, which sets it itself."""
        attention = "sdpa" if self.value("attention") == "varlen" else self.value("attention")
        return {"precision": self.value("precision"), "attention": attention, "device": self.device.torch_name}


def plan(
    settings: Settings,
    shape: Shape,
    longest: int | None = None,
    world: World | None = None,
    widest: int | None = None,
    proven: dict[str, dict] | None = None,
) -> Plan:
    """Decide how to use this machine for a run.

    Args:
        shape: of the base model.
        longest: tokens in the longest row; by default ``max_length``.
        world: of this process, where several train together.
        widest: rows in the largest micro-batch, or its tokens with ``batch_tokens``; by default what the settings allow.
        proven: decisions that were made by trying the model, see :mod:`helpers.engine.paths`.

    Raises:
        SettingsError: if the rows of a step cannot be divided among the processes, or the model cannot use the attention.
        ValueError: if ``targets`` names a layer that the model does not have.
    """
    world, device, proven = world or World(), describe(), proven or {}
    sharded = world.size > 1 and settings.method == "full"
    adapted = target_names(shape, settings.targets) if settings.method != "full" else []
    if adapted and settings.rank > (most := max(max(shape.linears[name]) for name in adapted)):
        raise SettingsError(f"rank={settings.rank} is more than the adapted layers have features ({most}): lower it")
    if not shape.sdpa:  # as Gemma-2's caps and the sinks of GPT-OSS
        why = "this model's layers ask their attention for something that only transformers' own code computes"
        if settings.attention not in (None, "eager"):
            raise SettingsError(f"attention={settings.attention!r} cannot be used: {why}; leave attention at None")
        proven = {"attention": {"value": "eager", "why": why}} | proven
    values = {name: choice["value"] for name, choice in (decide(settings, device, 0) | proven).items()}
    rows, tokens = widest or settings.share(world.size)[0], longest or settings.max_length
    sizes = {"batch": rows, "length": tokens} | {name: values[name] for name in ("precision", "attention", "loss")}
    sizes |= {name: getattr(settings, name) for name in ("rank", "targets", "dropout")}
    sizes |= {"fused": values["kernels"] == "liger" or values["compile"], "shards": world.size if sharded else 1}
    if settings.batch_tokens:
        sizes |= {"batch": 1, "length": widest or settings.batch_tokens}
    decisions = decide(settings, device, predict(shape, settings.method, **sizes).total) | proven
    sizes["checkpointing"] = decisions["checkpointing"]["value"]
    return Plan(device, decisions, predict(shape, settings.method, **sizes), world, sharded)
