"""Checks before a training starts, and the words for a device or a disk with too little room."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from helpers.device import Plan
from helpers.engine.fp8 import probe
from helpers.memory import GB, is_out_of_memory
from helpers.settings import shown

import torch

WAYS_OUT = (
    "Ways out: a smaller batch_size with more accumulation (same result), checkpointing=True (slower, fewer "
    "activations), or a method with fewer trained weights (lora, then qlora)"
)


class TrainingError(RuntimeError):
    """Training that cannot start or had to stop; the message says at which step and why."""


class Stopped(KeyboardInterrupt):
    """You stopped a training; says after which of how many steps, what checkpoint is kept, and how to go on."""

    def __init__(self, step: int, steps: int, newest: int | None):
        kept = "no checkpoint was written yet, so run this cell again to start from the first step"
        if newest:
            kept = f"the checkpoint of step {newest} is kept, so run this cell again to continue from there"
        super().__init__(
            f"you stopped the training after step {step} of {steps}: {kept}. Earlier results are unchanged"
        )


def split(plan: Plan) -> str:
    """The predicted memory by part, in GB, as one clause."""
    parts = {name: size for name, size in plan.predicted.to_dict().items() if size > 0.05 * GB or name == "total"}
    return ", ".join(f"{name} {size / GB:.1f}" for name, size in parts.items())


def owners() -> str:
    """Which processes hold memory of the GPU, as far as torch can tell, and what this one holds."""
    try:
        others = torch.cuda.list_gpu_processes()  # asks amdsmi or NVML, if its package is installed
    except Exception as error:
        others = f"the other processes are not known ({error}): see amd-smi process or nvidia-smi"
    return f"this process ({os.getpid()}): {torch.cuda.memory_reserved() / GB:.1f} GB\n{others}".replace("\n", "\n  ")


def device_memory(plan: Plan) -> None:
    """Refuse what would clearly not fit a GPU, and show who holds its memory; a CPU is let through, since it can swap."""
    device, needed = plan.device, plan.predicted.total
    if device.kind == "cpu":
        return
    room = f"{device.free_memory / GB:.1f} of {device.total_memory / GB:.1f} GB of {device.name} are free"
    if needed > 1.1 * device.free_memory:  # a prediction somewhat too high must not stop a run
        raise TrainingError(
            f"{room}, predicted are (GB) {split(plan)}. {WAYS_OUT}. Memory is held by:\n  {owners()}\n"
            "End what you do not need; a notebook gives its own back when its kernel is restarted"
        )
    if device.free_memory < 0.95 * device.total_memory:
        print(f"{room}, {needed / GB:.1f} GB are predicted. Memory is held by:\n  {owners()}")


def fp8_runs(plan: Plan, method: str) -> None:
    """Refuse fp8 products where the weights are not bf16, or where this device does not have them."""
    if plan.value("products") != "fp8":
        return
    wrong = probe(plan.device.torch_name)
    if method == "qlora":
        wrong = "qlora keeps its weights in 4 bits"
    elif plan.value("precision") != "bf16":
        wrong = "the arithmetic is not bf16"
    if wrong:
        raise TrainingError(f"products='fp8' cannot be used for this run ({wrong}): leave `products` at None")


def disk_space(model, folder: Path) -> None:
    """Refuse a training whose checkpoints would not fit: the newest is written before the one before it is removed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    # the weights, two AdamW states of each, fp32 masters, and a little
    size = sum(p.numel() * (p.element_size() + (8 if p.element_size() == 4 else 12)) for p in trained) + 1_000_000
    free = shutil.disk_usage(folder).free
    if 2 * size > free:
        raise TrainingError(
            f"two checkpoints in {shown(folder)} would take {2 * size / GB:.2f} GB, and {free / GB:.2f} GB of that disk are "
            "free: free some space, choose another runs_dir, or set save_steps to 0 to keep no checkpoints"
        )


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[None]:
    """A folder that is written whole or not at all: a failure removes it and becomes a TrainingError with its cause."""
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, Exception) or isinstance(error, TrainingError) or is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{shown(folder)} could not be written ({' '.join(str(error).split())[:200]}) and was removed: free some "
            "space or choose another runs_dir, then run again"
        ) from error


@contextlib.contextmanager
def explaining_memory(plan: Plan) -> Iterator[None]:
    """Turn running out of memory into the predicted split and three ways out; other errors keep their own words."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"the device ran out of memory: {plan.device.free_memory / GB:.1f} GB were free, predicted were (GB) "
            f"{split(plan)}. {WAYS_OUT}"
        ) from None
