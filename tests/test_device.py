"""What the machine is said to be, and how that decides; GPUs are faked, tools on PATH too."""

import time
from dataclasses import replace

from helpers import attention, device
from helpers.device import Device, MemoryMonitor, decide, describe, smi_lines
from helpers.settings import settings_for

import pytest

CPU = Device("cpu", "a processor", "x86_64", 1, 16 * 10**9, 8 * 10**9, None, bf16=True)
MI300X = Device("rocm", "AMD Instinct MI300X", "gfx942", 1, 192 * 10**9, 190 * 10**9, "ROCm 7.1", bf16=True)


def test_this_machine_is_described():
    here = describe()
    assert here.kind in ("cpu", "cuda", "rocm") and 0 < here.free_memory <= here.total_memory and here.name


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


def _tool(folder, name, script):
    (folder / name).write_text("#!/bin/sh\n" + script)
    (folder / name).chmod(0o755)


def test_tools_of_the_vendors_are_quoted_and_never_raise(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    _tool(
        tmp_path, "rocm-smi", "echo 'GPU[0] : Card series: AMD Instinct MI300X OAM'; echo 'GPU[0] : Serial Number: 12'"
    )
    _tool(tmp_path, "amd-smi", "echo broken >&2; exit 3")
    _tool(tmp_path, "nvidia-smi", "exit 0")
    said = smi_lines()
    assert "MI300X" in said["rocm-smi"] and "Serial" not in said["rocm-smi"]
    assert said["amd-smi"] == "broken" and said["nvidia-smi"] == "(no output)"


def test_a_tool_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    _tool(tmp_path, "rocm-smi", "exec sleep 60")
    real = device.subprocess.run
    monkeypatch.setattr(device.subprocess, "run", lambda *a, **k: real(*a, **(k | {"timeout": 0.5})))
    assert "TimeoutExpired" in smi_lines()["rocm-smi"]
