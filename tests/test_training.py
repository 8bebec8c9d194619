"""Training results: the loss falls, the right weights move, the same seed repeats."""

from helpers import records
from helpers.inference import logits
from helpers.models import load_base, load_saved, load_trained, save_adapter
from helpers.records import RecordError
from helpers.settings import AFTER_SFT, METHODS, settings_for
from helpers.sources import resolve
from helpers.training import train
from tests.shared import losses

import pytest
import torch


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_loss_falls_in_training_and_on_rows_held_out(runs, method):
    record = getattr(runs, method).record
    losses = [s["loss"] for s in record.steps]
    assert len(losses) == 40 and sum(losses[-5:]) < sum(losses[:5])
    before, after = record.training["validation_loss"]
    assert after < before
    assert record.evaluation["loss"] < runs.base.record.evaluation["loss"]


def test_lora_leaves_the_base_bit_equal_and_full_moves_it(runs):
    base = dict(load_base(resolve(runs.settings("lora"))).named_parameters())
    under_lora = runs.lora.model.get_base_model()
    for name, value in under_lora.named_parameters():
        if "lora_" not in name:
            assert torch.equal(value, base[name.replace(".base_layer", "")]), name
    moved = [n for n, p in runs.full.model.named_parameters() if not torch.equal(p, base[n])]
    assert len(moved) == len(base)
    assert runs.full.record.training["changed_share"] > 0.99


def test_full_is_saved_as_evaluated(runs):
    """The model that was scored is the one in the files, buffers included (model.to() would have rounded those)."""
    saved, _ = load_saved(runs.full.folder / "model")
    ids = torch.tensor([runs.data.test[0].input_ids])
    assert torch.equal(saved.eval()(ids).logits, runs.full.model.eval()(ids).logits)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_same_seed_gives_the_same_losses_and_another_does_not(tmp_path, data, runs, method):
    settings = settings_for("tiny", method, runs_dir=str(tmp_path))
    again = [s["loss"] for s in train(settings, data).record.steps]
    assert again == [s["loss"] for s in getattr(runs, method).record.steps]
    other = train(settings.change(seed=1, max_steps=3), data).record.steps
    assert [s["loss"] for s in other] != again[:3]


def test_both_methods_see_the_same_rows_and_tokens(runs):
    lora, full = runs.lora.record, runs.full.record
    assert lora.data["order"] == full.data["order"]
    assert lora.training["supervised_tokens"] == full.training["supervised_tokens"]


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("lora", "full", *AFTER_SFT)])
def test_variants_train_through_the_same_path_and_load_as_they_were(tmp_path, data, method):
    settings = settings_for("tiny", method, runs_dir=str(tmp_path), max_steps=20)
    trained = train(settings, data)
    before, after = trained.record.training["validation_loss"]
    assert after < before
    assert "frozen weights did not change" in {g["name"] for g in trained.record.guards}
    trained.record.save(trained.folder)
    ids = torch.tensor([data.test[0].input_ids])
    expected = logits(trained.model, ids)
    again = load_trained(settings, trained.record.decisions["precision"]["value"])
    assert (logits(again, ids) - expected).abs().max() == 0
    with again.disable_adapter():
        assert (logits(again, ids) - expected).abs().max() > 0.01


def test_accumulation_gives_the_same_training_as_a_larger_batch(tmp_path, data):
    one = train(settings_for("tiny", "full", runs_dir=str(tmp_path), max_steps=5), data).record
    parts = settings_for("tiny", "full", runs_dir=str(tmp_path), max_steps=5, batch_size=4, accumulation=2)
    two = train(parts, data).record
    assert one.data["order"] == two.data["order"]
    assert [s["loss"] for s in two.steps] == pytest.approx([s["loss"] for s in one.steps], rel=0.01)


def test_a_training_cell_run_twice_starts_from_the_base_again(tmp_path, data):
    settings = settings_for("tiny", "lora", runs_dir=str(tmp_path), max_steps=3)
    first = train(settings, data)
    first.record.save(first.folder)
    second = train(settings, data)
    assert not (second.folder / "record.json").exists()  # it comes with save(), last
    assert losses(second) == losses(first)


def test_a_record_never_stands_beside_the_weights_of_another_run(tmp_path, data):
    """Two notebooks train the same method one after the other; the first saves its record when the second has trained."""
    settings = settings_for("tiny", "lora", runs_dir=str(tmp_path), max_steps=2)
    first, second = train(settings, data), train(settings.change(learning_rate=1e-4), data)
    with pytest.raises(RecordError, match="another run has put its own weights into .*run this notebook again"):
        first.record.save(first.folder)
    second.record.save(second.folder)
    kept = records.load(second.folder)
    assert records.lost_files(kept, second.folder) == []
    save_adapter(first.model, resolve(settings), second.folder / "adapter")  # of the same sizes
    assert records.lost_files(kept, second.folder) == ["adapter/manifest.json"]
