"""Memory in use while a model trains, as sampled."""

import time

from helpers.device import Device
from helpers.engine.monitor import MemoryMonitor

CPU = Device("cpu", "a processor", "x86_64", 1, 16 * 10**9, 8 * 10**9, None, bf16=True)


def test_peak_of_a_known_allocation_is_seen():
    import torch

    with MemoryMonitor(CPU, every=0.01) as monitor:
        monitor.mark("forward")
        block = torch.ones(50_000_000)  # 200 MB
        time.sleep(0.1)
        monitor.mark("backward")
        del block
    result = monitor.result()
    assert 150e6 < result["peak"] < 600e6
    assert {"forward"} <= {phase for _, _, phase in result["timeline"]}


def test_a_long_load_does_not_thin_the_first_steps():
    monitor = MemoryMonitor(CPU)
    monitor.samples = [(0.05 * i, i, "load" if i < 3000 else "forward") for i in range(4000)]
    timeline = monitor.result()["timeline"]
    assert [b for _, b, _ in timeline if 2990 < b < 3200] == [2999, *range(3000, 3200)]  # the load's end, then each one
    assert timeline[0][1] == 0 and len(timeline) < 550
