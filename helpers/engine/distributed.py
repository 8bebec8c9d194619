"""One training on several devices: which process this is, how rows and memory are shared out, and how it is started.

Each device gets a process of its own. ``accelerate launch`` or ``torchrun`` starts them with their numbers in the
environment, and every one of them calls :func:`helpers.training.train` with the same settings. An adapter is
*replicated*: each process holds the whole model and the gradients are averaged (DistributedDataParallel). A model tuned
in full is *sharded*: each process holds its part of weights, gradients and optimizer states (FSDP2, ``fully_shard``).
helpers.engine.launch starts them.

Run on two CPU processes and on NVIDIA GPUs; nothing of this file was run on ROCm, where the same calls go to RCCL.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import replace
from functools import partial

from helpers.data import IGNORED, Example
from helpers.settings import Settings, SettingsError

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

SHOWN = 4  # parameters whose shapes a process reports


class DistributedError(RuntimeError):
    """Processes that cannot be started, or one that failed; the message says why."""


def too_many(wanted: int, there: int) -> str:
    return (
        f"{wanted} GPUs were asked for, but this machine shows {there}: ask for at most {there}, or make more visible "
        "(ROCR_VISIBLE_DEVICES, CUDA_VISIBLE_DEVICES)"
    )


def end_with_parent() -> None:
    """Let this process end when the one that started it does: a killed kernel leaves no training behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def rank() -> int:
    """The number of this process among all of a run, 0 where there is one."""
    return int(os.environ.get("RANK", 0))


def processes() -> int:
    """How many processes train together now, over all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that saves, evaluates and shows progress."""
    return rank() == 0


def sharded(settings: Settings) -> bool:
    """Whether the processes of this run hold a part of the model each, rather than a whole one."""
    return processes() > 1 and settings.method == "full"


def share(settings: Settings, among: int | None = None) -> tuple[int, int]:
    """The rows at a time and the accumulation of one process, so that a step of all has the rows of a step of one.

    Accumulation is divided first: it keeps the size of a batch on a device, and with it the speed.

    Args:
        among: how many processes; by default those that train together now.

    Raises:
        SettingsError: if the rows of a step cannot be shared out evenly.
    """
    among = among or processes()
    if settings.accumulation % among == 0:
        return settings.batch_size, settings.accumulation // among
    if settings.batch_tokens:
        raise SettingsError(
            f"micro-batches of batch_tokens cannot be divided among {among} processes; make accumulation, which is "
            f"{settings.accumulation}, a multiple of {among}"
        )
    if settings.batch_size % among == 0:
        return settings.batch_size // among, settings.accumulation
    raise SettingsError(
        f"a step of {settings.batch_size} x {settings.accumulation} rows (batch_size x accumulation) cannot be shared "
        f"evenly among {among} processes; make one of the two a multiple of {among}"
    )


def deal(order: list[list[Example]], settings: Settings, among: int | None = None) -> list[list[Example]]:
    """The micro-batches of a run so that every process can take each n-th one, in the order of one device.

    A process that would get no row of a short last batch of an epoch gets one without labels.
    """
    among = among or processes()
    if settings.accumulation % among == 0:
        return order
    dealt = []
    for batch in order:
        parts = [batch[len(batch) * i // among : len(batch) * (i + 1) // among] for i in range(among)]
        dealt += [part or [replace(batch[0], labels=[IGNORED] * len(batch[0].labels))] for part in parts]
    return dealt


# --- inside a process ---------------------------------------------------------------------------------------------


def start() -> None:
    """Take this process's own device and join the others. Does nothing where no launcher set the numbers.

    Raises:
        DistributedError: if a machine was given more processes than it has GPUs.
    """
    if "RANK" not in os.environ:
        return
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if 0 < gpus < here:
        raise DistributedError(too_many(here, gpus))
    device = None
    if gpus:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo", device_id=device)  # "nccl" is RCCL on ROCm
    end_with_parent()


def wait() -> None:
    """Go on when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def gather(mine: object) -> list:
    """What each process gives, in the order of their numbers, for every process."""
    if not dist.is_initialized():
        return [mine]
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return found


def part() -> None:
    """Leave the others: from here on each process works alone."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def shards(precision: str):
    """How a model is spread while it is read: each process reads its own part of every tensor.

    A block's weights are gathered when it is their turn, and dropped after it; gradients are added up in fp32.
    """
    from transformers.distributed import DistributedConfig

    return DistributedConfig(fsdp_size=processes(), fsdp_mixed_precision=precision == "bf16")


def run(model: torch.nn.Module, function, *inputs, **named):
    """``function(model, ...)``, as the model's own forward where it is sharded: only there are weights gathered."""
    if not isinstance(model, FSDPModule):
        return function(model, *inputs, **named)
    model.forward = partial(function, model)
    try:
        return model(*inputs, **named)
    finally:
        del model.forward


def reshard(model: torch.nn.Module) -> None:
    """Drop what a forward pass without a backward pass left gathered, so that an optimizer is given the parts."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _bytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in map(local, tensors))


def held(model: torch.nn.Module, optimizer) -> dict:
    """What this process holds between the backward pass and the end of a step, measured on the tensors themselves.

    Returns:
        ``parameters``, ``gradients`` and ``optimizer`` in bytes, and ``shapes``: for some trained parameters their
        whole shape, the local one and the type.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    states = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    return {
        "parameters": _bytes(model.parameters()),
        "gradients": _bytes(p.grad for _, p in trained if p.grad is not None),
        "optimizer": _bytes(states),
        "shapes": [
            {"name": name, "whole": list(p.shape), "local": list(local(p).shape), "dtype": str(p.dtype).removeprefix("torch.")}
            for name, p in trained[:SHOWN]
        ],
    }  # fmt: skip


def whole(weights: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a sharded model, known by their parts in each process, put together in the main process's memory.

    Every process must call it; the others get nothing.
    """
    found = {}
    for name, p in model.named_parameters():
        part = local(weights[name])
        tensor = DTensor.from_local(part, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()).full_tensor()
        if is_main():
            found[name] = tensor.cpu()
    return found
