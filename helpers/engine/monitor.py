"""Memory in use while a model trains, sampled in the background."""

from __future__ import annotations

import threading
import time

from helpers.device import Device, own_gpu
from helpers.memory import free_memory

import psutil
import torch


def used_memory(kind: str) -> int:
    """Bytes in use now: allocated by torch on a GPU, resident in this process on a CPU."""
    return psutil.Process().memory_info().rss if kind == "cpu" else torch.cuda.memory_allocated(own_gpu())


class MemoryMonitor:
    """Samples memory in use in the background and notes which phase each sample fell in: every 10 ms in the first
    seconds of training, which shows the rhythm of its steps, and every ``every`` seconds otherwise.

    On a GPU the peak is torch's own exact counter; on a CPU it is the highest sample of resident memory, less what
    the process held when the monitor started.
    """

    def __init__(self, device: Device, every: float = 0.05):
        self.kind, self.every = device.kind, every
        self.samples: list[tuple[float, int, str]] = []
        self.phase = "load"
        self.fine_until = 0.0  # seconds since the start
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
        while not self._stop.wait(0.01 if time.perf_counter() - self.start < self.fine_until else self.every):
            self.sample()

    def sample(self) -> None:
        """Take one sample now."""
        self.samples.append((time.perf_counter() - self.start, used_memory(self.kind) - self.before, self.phase))

    def mark(self, phase: str) -> None:
        """Say that a phase begins: load, forward, backward, step or save. What "compare" took is forgotten."""
        self.sample()
        if self.phase == "compare":
            self.samples = [sample for sample in self.samples if sample[2] != "compare"]
            if self.kind != "cpu":
                torch.cuda.reset_peak_memory_stats(own_gpu())
        self.phase = phase
        if phase == "forward" and not self.fine_until:
            self.fine_until = time.perf_counter() - self.start + 5

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
