"""The singular values of what training added to the weights."""

import pytest


def test_the_update_of_lora_has_at_most_its_rank(runs):
    rank = runs.lora.record.settings["rank"]
    for update in runs.lora.record.update:
        assert dict(zip(update["ranks"], update["energy"], strict=True))[rank] == pytest.approx(1, abs=1e-4)
    assert {u["layer"] for u in runs.full.record.update} == {u["layer"] for u in runs.lora.record.update}
    assert all(u["energy"] == sorted(u["energy"]) for u in runs.full.record.update)
