"""One training on several devices: joining the other processes, and what each of them holds.

Each device gets a process, and all run the same training. An adapter is *replicated*: each process holds the whole model and
gradients are averaged (DistributedDataParallel). A model tuned in full is *sharded* (FSDP2). Nothing here was run on ROCm.
"""

from __future__ import annotations

import ctypes
import os
import signal

from helpers.device import World
from helpers.optimizer import local

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

SHAPES = 4  # parameters whose shapes a process reports
PR_SET_PDEATHSIG = 1
# `python -c` with this and a command: the command, but it ends when the process that started it does, a killed kernel too
FOLLOW_PARENT = (
    f"import ctypes, os, sys; ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, 15); os.execv(sys.argv[1], sys.argv[1:])"
)


class DistributedError(RuntimeError):
    """Processes that cannot be started, or one that failed; the message says why."""


def require(wanted: int, there: int, what: str = "GPUs") -> None:
    """Refuse more processes than there are GPUs, or cores, for them."""
    if wanted > there:
        raise DistributedError(
            f"{wanted} {what} were asked for, but at most {there} can be used here: ask for fewer, or make more visible "
            "(ROCR_VISIBLE_DEVICES, CUDA_VISIBLE_DEVICES)"
        )


def join() -> World:
    """Take this process's own device and join the others; alone where no launcher set the numbers."""
    if "RANK" not in os.environ:
        return World()
    gpus = torch.cuda.device_count()
    if gpus:
        require(int(os.environ["LOCAL_WORLD_SIZE"]), gpus)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # a launcher that is killed leaves no training behind
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

    In bytes, and of some trained parameters the whole shape, the local one and the type.
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
    """The sentence that proves that a sharded model lies in parts: ``held`` bytes of weights in this process."""
    everything = sum(p.numel() * p.element_size() for p in model.parameters())
    if held >= 1.05 * everything / processes:
        raise DistributedError(
            f"{held:,} of {everything:,} bytes of weights lie in each process: they were not sharded"
        )
    return f"{held:,} bytes of weights here, 1/{processes} of {everything:,}"


def in_agreement(digests: list[str]) -> str:
    """The sentence that proves that replicated processes hold equal weights, by the digest of those of each."""
    if len(set(digests)) > 1:
        raise DistributedError(
            f"the trained weights differ between processes ({', '.join(digests)}): no gradient was averaged"
        )
    return f"sha256 {digests[0]} of the trained weights in each of {len(digests)} processes"


def whole(weights: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a sharded model, put together in the main process's memory; every process must call it."""
    together = {}
    for name, p in model.named_parameters():
        piece = local(weights[name])
        tensor = DTensor.from_local(piece, p.device_mesh, p.placements, shape=p.shape, stride=p.stride()).full_tensor()
        if PartialState().is_main_process:
            together[name] = tensor.cpu()
    return together
