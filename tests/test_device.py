"""What the machine is said to be, and how that decides; GPUs are faked."""

import time
from dataclasses import replace
from types import SimpleNamespace

from helpers.device import Device, decide, describe
from helpers.engine import attention
from helpers.engine.monitor import MemoryMonitor
from helpers.settings import settings_for

import pytest

CPU = Device("cpu", "a processor", "x86_64", 1, 16 * 10**9, 8 * 10**9, None, bf16=True)
MI300X = Device("rocm", "AMD Instinct MI300X", "gfx942", 1, 192 * 10**9, 190 * 10**9, "ROCm 7.1", bf16=True)


def test_this_machine_is_described():
    here = describe()
    assert here.kind in ("cpu", "cuda", "rocm") and 0 < here.free_memory <= here.total_memory and here.name


def test_a_gpu_that_shares_memory_has_no_more_free_than_there_is(monkeypatch):
    """As reported for a Strix Halo: 120 GiB free of 62.47 GiB (https://github.com/ROCm/legacy-rocm-build/issues/6004)."""
    properties = SimpleNamespace(name="AMD Radeon 8060S", gcnArchName="gfx1151", major=11, minor=5)
    fake = {
        "is_available": lambda: True, "get_device_properties": lambda i: properties, "device_count": lambda: 1,
        "mem_get_info": lambda i: (120 * 2**30, 62 * 2**30), "is_bf16_supported": lambda **k: True,
    }  # fmt: skip
    for name, function in fake.items():
        monkeypatch.setattr(f"torch.cuda.{name}", function)
    monkeypatch.setattr("torch.version.hip", "7.1.0")
    here = describe()
    assert (here.kind, here.architecture) == ("rocm", "gfx1151") and here.free_memory == here.total_memory == 62 * 2**30


@pytest.mark.parametrize(
    ("where", "peak", "expected"),
    [
        (CPU, 1e9, ("bf16", "eager", False)),
        (replace(CPU, bf16=False), 1e9, ("fp32", "eager", False)),
        (CPU, 7.5e9, ("bf16", "eager", True)),
        (MI300X, 100e9, ("bf16", "varlen", False)),
        (MI300X, 180e9, ("bf16", "varlen", True)),
    ],
)
def test_decisions_follow_the_device_and_say_why(where, peak, expected, monkeypatch):
    monkeypatch.setattr(attention, "probe", lambda device: None)
    chosen = decide(settings_for("small"), where, int(peak))
    assert tuple(chosen[k]["value"] for k in ("precision", "attention", "checkpointing")) == expected
    assert all(choice["why"] for choice in chosen.values())


def test_a_kernel_that_fails_its_probe_is_not_used(monkeypatch):
    monkeypatch.setattr(attention, "probe", lambda device: "its result is off by 3")
    chosen = decide(settings_for("small"), MI300X, 0)["attention"]
    assert chosen["value"] == "sdpa" and "off by 3" in chosen["why"]


def test_the_reader_decides_otherwise():
    settings = settings_for("small", precision="fp32", attention="sdpa", checkpointing=True)
    chosen = decide(settings, MI300X, 0)
    assert {k: (v["value"], v["why"]) for k, v in chosen.items() if v["why"] == "set by the reader"} == {
        "precision": ("fp32", "set by the reader"),
        "attention": ("sdpa", "set by the reader"),
        "checkpointing": (True, "set by the reader"),
    }


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
