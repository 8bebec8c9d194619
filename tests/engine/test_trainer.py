"""The trainer: arithmetic as recorded, one device, packed rows, events, and an end at the first loss that is no number."""

from helpers.device import plan
from helpers.engine import loss, trainer
from helpers.engine.preflight import TrainingError
from helpers.engine.trainer import Trainer
from helpers.settings import settings_for
from helpers.sources import resolve
from helpers.training import train

import pytest
import torch


def test_training_stops_at_the_first_loss_that_is_not_a_number(tmp_path, data, monkeypatch):
    real = Trainer.training_step

    def spoiled(self, model, *more):
        if self.state.global_step == 2:
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("nan")
        return real(self, model, *more)

    monkeypatch.setattr(Trainer, "training_step", spoiled)
    settings = settings_for("tiny", "full", runs_dir=str(tmp_path), max_steps=6, save_steps=1)
    with pytest.raises(TrainingError, match="the loss at step 3 is nan: training stopped"):
        train(settings, data)
    assert not (settings.folder / "record.json").exists()
    assert not (settings.folder / "checkpoints/checkpoint-3").exists()


def test_a_process_uses_one_device_however_many_are_visible(monkeypatch, tiny):
    real = trainer.SFTConfig

    def sees_eight(**options):
        arguments = real(**options)
        arguments._n_gpu = min(8, 8 + arguments.n_gpu)  # what it finds where eight GPUs are visible
        return arguments

    monkeypatch.setattr(trainer, "SFTConfig", sees_eight)
    assert trainer._arguments(tiny, plan(tiny, resolve(tiny).shape)).n_gpu == 1


def test_a_packed_run_trains_and_records_its_padding(tmp_path, data):
    settings = settings_for("tiny", batch_tokens=640, attention="sdpa", max_steps=4, runs_dir=str(tmp_path))
    record = train(settings, data).record
    assert record.training["padded_tokens"] == 4 * 640 and 0 < record.training["tokens"] <= 4 * 640
    assert record.steps[-1]["loss"] < record.steps[0]["loss"]


def test_tensorboards_events_hold_the_losses(tmp_path, data):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = settings_for("tiny", runs_dir=str(tmp_path), max_steps=3, report_to="tensorboard")
    record = train(settings, data).record
    note = tmp_path / "tiny/tensorboard/lora-s0/my-notes.txt"
    note.write_text("not this project's")
    train(settings, data)  # a second run takes the place of the first
    assert note.read_text() == "not this project's"
    events = EventAccumulator(str(tmp_path / "tiny/tensorboard/lora-s0")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(step["step"], pytest.approx(step["loss"])) for step in record.steps]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_arithmetic_is_in_the_precision_that_the_record_states(tmp_path, data, monkeypatch, method, precision):
    real, seen = loss.supervised_nll, set()

    def watched(model, *arguments, **inputs):
        seen.update(p.dtype for p in model.parameters())
        return real(model, *arguments, **inputs)

    monkeypatch.setattr(loss, "supervised_nll", watched)
    record = train(settings_for("tiny", method, runs_dir=str(tmp_path), precision=precision, max_steps=4), data).record
    assert record.decisions["precision"]["value"] == precision
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
