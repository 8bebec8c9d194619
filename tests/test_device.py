"""How a machine is described, and what follows from that; GPUs are faked."""

from dataclasses import replace
from types import SimpleNamespace

from helpers import device
from helpers.device import Device, decide, describe
from helpers.settings import settings_for

import pytest
import torch

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
    monkeypatch.setattr(device, "varlen_probe", lambda name: None)
    chosen = decide(settings_for("small"), where, int(peak))
    assert tuple(chosen[k]["value"] for k in ("precision", "attention", "checkpointing")) == expected
    assert all(choice["why"] for choice in chosen.values())


def test_a_kernel_that_fails_its_probe_is_not_used(monkeypatch):
    monkeypatch.setattr(device, "varlen_probe", lambda name: "its result is off by 3")
    chosen = decide(settings_for("small"), MI300X, 0)["attention"]
    assert chosen["value"] == "sdpa" and "off by 3" in chosen["why"]


def test_what_you_set_is_kept():
    settings = settings_for("small", precision="fp32", attention="sdpa", checkpointing=True)
    chosen = decide(settings, MI300X, 0)
    assert {k: (v["value"], v["why"]) for k, v in chosen.items() if v["why"] == "set by you"} == {
        "precision": ("fp32", "set by you"),
        "attention": ("sdpa", "set by you"),
        "checkpointing": (True, "set by you"),
    }


def test_sdpa_keeps_away_from_cudnn_which_plans_every_new_shape():
    assert not torch.backends.cuda.cudnn_sdp_enabled()
