"""One training on several devices: joining the other processes, and what each of them holds.

Each device gets a process of its own. ``accelerate launch`` or ``torchrun`` starts them with their numbers in the
environment, and every one of them runs the same training. An adapter is *replicated*: each process holds the whole model
and the gradients are averaged (DistributedDataParallel). A model tuned in full is *sharded*: each process holds its part of
weights, gradients and optimizer states (FSDP2, ``fully_shard``).

Run on two CPU processes and on NVIDIA GPUs. Nothing in this file was run on ROCm, where the same calls go to RCCL.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from helpers.device import World
from helpers.optimizer import local

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

SHAPES = 4  # parameters whose shapes a process reports


class DistributedError(RuntimeError):
    """Processes that cannot be started, or one that failed; the message says why."""


def too_many(wanted: int, there: int) -> str:
    """The sentence for more processes than GPUs."""
    return (
        f"{wanted} GPUs were asked for, but this machine shows {there}: ask for at most {there}, or make more visible "
        "(ROCR_VISIBLE_DEVICES, CUDA_VISIBLE_DEVICES)"
    )


def end_with_parent() -> None:
    """Let this process end when the one that started it does: a killed kernel leaves no training behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def join() -> World:
    """Take this process's own device and join the others; alone where no launcher set the numbers.

    Raises:
        DistributedError: if a machine was given more processes than it has GPUs.
    """
    if "RANK" not in os.environ:
        return World()
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if 0 < gpus < here:
        raise DistributedError(too_many(here, gpus))
    end_with_parent()
    state = PartialState(cpu=not gpus)  # joins them with NCCL, which is RCCL on ROCm, or with Gloo on CPUs
    return World(state.process_index, state.num_processes)


def wait() -> None:
    """Continue when every process has come here."""
    if dist.is_initialized():
        dist.barrier()


def gather(value: object) -> list:
    """The value of each process, in the order of their numbers, for every process."""
    return gather_object([value]) if dist.is_initialized() else [value]


def leave() -> None:
    """Leave the others: from here on each process works alone."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def reshard(model: torch.nn.Module) -> None:
    """Drop what a forward pass without a backward pass left gathered, so that an optimizer is given the parts."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def held(model: torch.nn.Module, optimizer) -> dict:
    """What this process holds between the backward pass and the end of a step, measured on the tensors themselves.

    Returns:
        ``parameters``, ``gradients`` and ``optimizer`` in bytes, and ``shapes``: for some trained parameters their
        whole shape, the local one and the type.
    """

    def size(tensors) -> int:
        return sum(t.numel() * t.element_size() for t in map(local, tensors))

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    shapes = [
        {"name": n, "whole": list(p.shape), "local": list(local(p).shape), "dtype": str(p.dtype).removeprefix("torch.")}
        for n, p in trained[:SHAPES]
    ]
    return {
        "parameters": size(model.parameters()),
        "gradients": size(p.grad for _, p in trained if p.grad is not None),
        "optimizer": size(v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)),
        "shapes": shapes,
    }


def held_in_parts(model: torch.nn.Module, held: int, processes: int) -> str:
    """Prove that a sharded model lies in parts: ``held`` bytes of weights in this process; as a sentence.

    Raises:
        DistributedError: if a process holds more than its part.
    """
    everything = sum(p.numel() * p.element_size() for p in model.parameters())
    if held >= 1.05 * everything / processes:
        raise DistributedError(
            f"{held:,} of {everything:,} bytes of weights lie in each process: they were not sharded"
        )
    return f"{held:,} bytes of weights here, 1/{processes} of {everything:,}"


def in_agreement(digests: list[str]) -> str:
    """Prove that replicated processes hold equal weights, by the digest of those of each; as a sentence.

    Raises:
        DistributedError: if they differ.
    """
    if len(set(digests)) > 1:
        raise DistributedError(
            f"the trained weights differ between processes ({', '.join(digests)}): no gradient was averaged"
        )
    return f"sha256 {digests[0]} of the trained weights in each of {len(digests)} processes"


def whole(weights: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of a sharded model, known by their parts in each process, put together in the main process's memory.

    Every process must call it; the others get nothing.
    """
    together = {}
    for name, p in model.named_parameters():
        piece = local(weights[name])
        tensor = DTensor.from_local(piece, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()).full_tensor()
        if PartialState().is_main_process:
            together[name] = tensor.cpu()
    return together
