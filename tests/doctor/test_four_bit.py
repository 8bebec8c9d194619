"""4-bit weights are tried on the device, and a fault becomes a reason."""

from helpers.device import describe
from helpers.doctor import four_bit

import bitsandbytes


def test_a_device_is_tried_and_a_fault_becomes_a_reason(monkeypatch):
    works, tried = four_bit.runs(describe().torch_name)
    assert works and "forward and backward" in tried
    assert {"cpu", four_bit.wanted_library()} <= set(four_bit.libraries())
    assert any(name.startswith("rocm") for name in four_bit.libraries())

    def broken(*_, **__):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(bitsandbytes.nn, "Linear4bit", broken)
    assert four_bit.runs("cpu") == (False, "RuntimeError: no kernel image is available")
