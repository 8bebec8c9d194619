"""Memory in use while a model trains, sampled in the background."""

from __future__ import annotations

import contextlib
import threading
import time

from helpers.device import Device, own_gpu
from helpers.memory import free_memory

import psutil
import torch


def used_memory(kind: str) -> int:
    """Bytes in use now: allocated by torch on a GPU, resident in this process on a CPU."""
    return psutil.Process().memory_info().rss if kind == "cpu" else torch.cuda.memory_allocated(own_gpu())


def energy() -> float | None:
    """Joules that this process's GPU has counted since its driver was loaded; None where nothing counts them.

    NVIDIA's counter is read through NVML, AMD's through ``amdsmi`` (by its documentation: this was run on no AMD GPU).
    """
    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(own_gpu())
    with contextlib.suppress(Exception):  # the package is not installed, or the card has no counter
        if torch.version.hip:
            import amdsmi

            amdsmi.amdsmi_init()
            place = f"{card.pci_domain_id:04x}:{card.pci_bus_id:02x}:{card.pci_device_id:02x}.0"
            count = amdsmi.amdsmi_get_energy_count(amdsmi.amdsmi_get_processor_handle_from_bdf(place))
            return count["energy_accumulator"] * count["counter_resolution"] / 1e6  # microjoules
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{card.uuid}")) / 1000
    return None


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
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryMonitor:
        free_memory()
        self.start = time.perf_counter()
        self._forget_peak()
        self.before = used_memory(self.kind)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01 if time.perf_counter() - self.start < self.fine_until else self.every):
            self.sample()

    def _forget_peak(self) -> None:
        if self.kind != "cpu":
            torch.cuda.reset_peak_memory_stats(own_gpu())

    def sample(self) -> None:
        """Take one sample now."""
        self.samples.append((time.perf_counter() - self.start, used_memory(self.kind) - self.before, self.phase))

    def mark(self, phase: str) -> None:
        """Say that a phase begins: load, forward, backward, step or save. What "compare" took is forgotten."""
        self.sample()
        if self.phase == "compare":
            self.samples = [sample for sample in self.samples if sample[2] != "compare"]
            self._forget_peak()
        self.phase = phase
        if phase == "forward" and not self.fine_until:
            self.fine_until = time.perf_counter() - self.start + 5

    def result(self) -> dict:
        """Peak, reserved and a timeline thinned to about 500 samples, in bytes and seconds."""
        peak, reserved = max((used for _, used, _ in self.samples), default=0), None
        if self.kind != "cpu":
            peak = torch.cuda.max_memory_allocated(own_gpu()) - self.before
            reserved = torch.cuda.max_memory_reserved(own_gpu())
        load = [s for s in self.samples if s[2] == "load"]  # a large model may take minutes
        rest = self.samples[len(load) :]
        early = [s for s in rest if s[0] <= rest[0][0] + 15][:250]  # the first steps whole
        late = rest[len(early) :]
        thinned = load[: -1 : max(1, len(load) // 125)] + load[-1:] + early + late[:: max(1, len(late) // 125)]
        timeline = [[round(seconds, 3), used, phase] for seconds, used, phase in thinned]
        return {"peak": peak, "reserved": reserved, "timeline": timeline}
