"""Memory in use while a model trains, as sampled, and the energy that a GPU counts."""

import sys
import time
from types import SimpleNamespace

from helpers.device import Device
from helpers.engine.monitor import MemoryMonitor, energy
from helpers.training import train

import pytest
import torch

CPU = Device("cpu", "a processor", "x86_64", 1, 16 * 10**9, 8 * 10**9, None, bf16=True)


def test_peak_of_a_known_allocation_is_seen():
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


def packages(error: Exception | None = None) -> dict:
    """Stand-ins for the makers' packages, with answers in the form of their documentation."""

    def counted(handle):
        if error:
            raise error
        return {"energy_accumulator": 4_000_000, "counter_resolution": 15.3} if handle == "0000:83:00.0" else 5_250_000

    nvidia = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=str, nvmlDeviceGetTotalEnergyConsumption=counted
    )
    amd = SimpleNamespace(
        amdsmi_init=lambda: None, amdsmi_get_processor_handle_from_bdf=str, amdsmi_get_energy_count=counted
    )
    return {"pynvml": nvidia, "amdsmi": amd}


@pytest.mark.parametrize(
    ("hip", "given", "joules"),
    [
        (None, packages(), 5250.0),  # millijoules
        ("7.1", packages(), 61.2),  # ticks of 15.3 microjoules
        (None, packages(RuntimeError("Not Supported")), None),
        ("7.1", packages(RuntimeError("AMDSMI_STATUS_NOT_SUPPORTED")), None),
        (None, {"pynvml": None}, None),  # not installed
        ("7.1", {"amdsmi": None}, None),
    ],
)
def test_energy_is_that_of_the_cards_own_counter_or_unknown(monkeypatch, hip, given, joules):
    card = SimpleNamespace(uuid="a1", pci_domain_id=0, pci_bus_id=0x83, pci_device_id=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.version, "hip", hip)
    for name, package in given.items():
        monkeypatch.setitem(sys.modules, name, package)
    assert energy() == (joules if joules is None else pytest.approx(joules))


def test_a_processor_counts_no_energy(runs):
    assert energy() is None and runs.lora.record.training["energy"] is None


@pytest.mark.parametrize(("counts", "joules"), [([100.0, 350.0], 250.0), ([100.0, None], None), ([None, 350.0], None)])
def test_a_counter_that_fails_during_a_training_loses_nothing(monkeypatch, tiny, data, tmp_path, counts, joules):
    monkeypatch.setattr("helpers.engine.run.energy", lambda left=[*counts]: left.pop(0))
    record = train(tiny.change(max_steps=1, warmup_steps=0, save_steps=0, runs_dir=str(tmp_path)), data).record
    assert record.training["energy"] == joules and record.training["train_seconds"] > 0
