"""4-bit weights: found out by trying, counted bit by bit, and merged into the numbers that they stand for."""

from helpers.device import describe
from helpers.doctor import four_bit
from helpers.inference import logits
from helpers.memory import NF4_BYTES
from helpers.models import load_adapter, load_base, load_trained, merge, on_dequantised
from helpers.settings import settings_for
from helpers.sources import resolve
from helpers.training import train

import bitsandbytes
import pytest
import torch


def test_a_device_is_tried_and_a_fault_becomes_a_reason(monkeypatch):
    works, tried = four_bit.runs(describe().torch_name)
    assert works and "forward and backward" in tried
    assert {"cpu", four_bit.wanted_library()} <= set(four_bit.libraries())
    assert any(name.startswith("rocm") for name in four_bit.libraries())

    def broken(*_, **__):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(bitsandbytes.nn, "Linear4bit", broken)
    assert four_bit.runs("cpu") == (False, "RuntimeError: no kernel image is available")


def test_a_qlora_adapter_is_merged_into_the_numbers_it_was_trained_on(tmp_path, data):
    settings = settings_for("tiny", "qlora", runs_dir=str(tmp_path), max_steps=10, precision="fp32")
    trained = train(settings, data)
    trained.record.save(trained.folder)
    assert four_bit.bits_per_weight(trained.model) == pytest.approx(8 * NF4_BYTES, abs=0.02)  # blocks that are not full
    ids = torch.tensor([data.test[0].input_ids])
    truth = logits(load_trained(settings, "fp32"), ids)
    right = logits(on_dequantised(settings).merge_and_unload(), ids)
    assert torch.allclose(right, truth, atol=1e-4)
    plain = load_base(resolve(settings.change(method="lora")), "fp32")
    wrong = logits(load_adapter(plain, resolve(settings), settings.folder / "adapter").merge_and_unload(), ids)
    assert (wrong - truth).abs().max() > 100 * (right - truth).abs().max()
    merge(settings, tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("adapter*")) and (tmp_path / "merged/model.safetensors").is_file()
