"""What this machine is and how a run will use it: vendor, architecture, memory, precision, attention, live memory.

ROCm answers through ``torch.cuda`` as CUDA does; ``torch.version.hip`` tells them apart. Nothing of this file was run
on a ROCm device; it was run on an NVIDIA GPU and on CPUs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import sys
import threading
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec

from helpers.engine import attention
from helpers.settings import Settings

import psutil
import torch

GB = 1e9  # decimal, as in the arithmetic of parameters times bytes


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

    @property
    def torch_name(self) -> str:
        """The device string that torch understands."""
        return "cpu" if self.kind == "cpu" else f"cuda:{own_gpu()}"

    def to_dict(self) -> dict:
        return asdict(self)


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
            free_memory=min(
                free, total
            ),  # where GPU and processor share memory, HIP may report more free than there is
            runtime=f"ROCm {hip}" if hip else f"CUDA {torch.version.cuda}",
            bf16=torch.cuda.is_bf16_supported(including_emulation=False),
        )
    memory = psutil.virtual_memory()
    return Device(
        kind="cpu",
        name=_cpu_name(),
        architecture=platform.machine(),
        count=1,
        total_memory=memory.total,
        free_memory=memory.available,
        runtime=None,
        bf16=_cpu_has_bf16(),
    )


def _cpu_facts() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            return handle.read().split("\n\n")[0]
    except OSError:
        return ""


def _cpu_name() -> str:
    for line in _cpu_facts().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 numbers itself; otherwise torch only imitates it, slower than fp32."""
    words = set(_cpu_facts().split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def decide(settings: Settings, device: Device, peak_without_checkpointing: int) -> dict[str, dict]:
    """How to use the device: precision, attention, kernels, compiling and checkpointing, each with its reason.

    Args:
        settings: a value other than None is the reader's and is kept.
        peak_without_checkpointing: predicted bytes, from :mod:`helpers.memory`.

    Returns:
        ``{"precision": {"value": "bf16", "why": ...}, "attention": ..., "checkpointing": ...}``
    """
    chosen = {}
    if device.bf16:
        chosen["precision"] = ("bf16", "this device multiplies bf16 natively, at least twice as fast as fp32")
    else:
        chosen["precision"] = ("fp32", "this device has no bf16 arithmetic of its own")
    if device.kind == "cpu":
        chosen["attention"] = ("eager", "on short rows the plain matrix products train faster on a CPU than SDPA")
        chosen["kernels"] = ("torch", "fused kernels exist for GPUs only")
    else:
        wrong = attention.probe(device.torch_name)
        chosen["attention"] = (
            ("sdpa", f"torch's variable-length kernel is not usable here ({wrong})")
            if wrong
            else ("varlen", "torch's variable-length kernel was probed and is right: rows lie end to end, unpadded")
        )
        chosen["kernels"] = (
            ("liger", "norms, rotations and gates in one pass over memory each")
            if find_spec("liger_kernel") and not settings.compile
            else (
                "torch",
                "each layer is compiled" if settings.compile else "the package liger-kernel is not installed",
            )
        )
    chosen["compile"] = (False, "compiling takes longer than a short run can win back")
    budget = 0.9 * device.free_memory
    needs = f"predicted {peak_without_checkpointing / GB:.1f} GB against {device.free_memory / GB:.1f} GB free"
    chosen["checkpointing"] = (peak_without_checkpointing > budget, needs)
    return {
        name: {"value": value, "why": why}
        if getattr(settings, name) is None
        else {"value": getattr(settings, name), "why": "set by the reader"}
        for name, (value, why) in chosen.items()
    }


def used_memory(kind: str) -> int:
    """Bytes in use now: allocated by torch on a GPU, resident in this process on a CPU."""
    return psutil.Process().memory_info().rss if kind == "cpu" else torch.cuda.memory_allocated(own_gpu())


class MemoryMonitor:
    """Samples memory in use in the background and notes which phase each sample fell in.

    On a GPU the peak is torch's own exact counter; on a CPU it is the highest sample of resident memory, less what
    the process held when the monitor started.
    """

    def __init__(self, device: Device, every: float = 0.05):
        self.kind, self.every = device.kind, every
        self.samples: list[tuple[float, int, str]] = []
        self.phase = "load"
        self._stop = threading.Event()

    def __enter__(self) -> MemoryMonitor:
        free_memory()
        self.start = time.perf_counter()
        if self.kind != "cpu":
            torch.cuda.reset_peak_memory_stats(own_gpu())
        self.before = used_memory(self.kind)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self.every):
            self.sample()

    def sample(self) -> None:
        """Take one sample now."""
        self.samples.append((time.perf_counter() - self.start, used_memory(self.kind) - self.before, self.phase))

    def mark(self, phase: str) -> None:
        """Say that a phase begins: load, forward, backward, step or save."""
        self.sample()
        self.phase = phase

    def result(self, points: int = 500) -> dict:
        """Peak, reserved and a timeline thinned to about ``points`` samples, in bytes and seconds."""
        on_gpu = self.kind != "cpu"
        peak = (
            torch.cuda.max_memory_allocated(own_gpu()) - self.before
            if on_gpu
            else max((s[1] for s in self.samples), default=0)
        )
        load = [s for s in self.samples if s[2] == "load"]  # a large model may take minutes
        rest = self.samples[len(load) :]
        early = [s for s in rest if s[0] <= rest[0][0] + 15][: points // 2]  # the first steps whole
        late = rest[len(early) :]
        few = points // 4
        thinned = load[: -1 : max(1, len(load) // few)] + load[-1:] + early + late[:: max(1, len(late) // few)]
        return {
            "peak": peak,
            "reserved": torch.cuda.max_memory_reserved(own_gpu()) if on_gpu else None,
            "timeline": [[round(t, 3), b, phase] for t, b, phase in thinned],
        }


FULL = ("out of memory", "can't allocate memory", "status_alloc_failed")  # CUDA and HIP, the CPU, the BLAS libraries


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left, in the words of CUDA, HIP or the CPU's allocator."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in FULL)


def free_memory() -> None:
    """Give back what deleted models held, so that the next one finds room."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":  # glibc keeps freed blocks, and more so with the settings of the Makefile
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def quiet():
    """Keep the progress bars and advice of the libraries out of a notebook; errors still show."""
    from datasets.utils import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
        enable_progress_bars()
