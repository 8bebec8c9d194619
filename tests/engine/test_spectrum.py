"""The singular values of what training added to the weights."""

from helpers.engine.spectrum import weight_updates
from helpers.models import load_base, to_train
from helpers.sources import resolve

import pytest
import torch


def test_the_update_of_lora_has_at_most_its_rank(runs):
    rank = runs.lora.record.settings["rank"]
    for update in runs.lora.record.update:
        assert dict(zip(update["ranks"], update["energy"], strict=True))[rank] == pytest.approx(1, abs=1e-4)
    assert {u["layer"] for u in runs.full.record.update} == {u["layer"] for u in runs.lora.record.update}
    assert all(u["energy"] == sorted(u["energy"]) for u in runs.full.record.update)


def test_the_update_of_dora_is_what_merging_changes(tiny):
    settings = tiny.change(method="dora")
    model, base = to_train(load_base(resolve(settings), "fp32"), settings, "fp32"), load_base(resolve(settings), "fp32")
    for name, weight in model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    updates = weight_updates(model, resolve(settings).folder)
    merged = model.merge_and_unload().state_dict()
    for update in updates:
        block, _, name = update["layer"].partition(".")
        (key,) = [key for key in merged if f"layers.{block}." in key and f".{name}." in key]
        delta = merged[key] - base.state_dict()[key]
        assert update["relative_norm"] == pytest.approx((delta.norm() / base.state_dict()[key].norm()).item(), rel=1e-3)
    assert len(updates) == 14
