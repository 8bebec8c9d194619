"""A training that was interrupted resumes to the losses and weights of one that was not, or says why it cannot."""

import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

from helpers.batches import training_order
from helpers.data import fingerprint
from helpers.device import plan
from helpers.engine.checkpoints import Checkpoints, conditions
from helpers.engine.preflight import TrainingError
from helpers.engine.trainer import WEIGHTS, Steps, Trainer
from helpers.guards import GuardError
from helpers.models import adapter_config
from helpers.settings import ROOT, settings_for, shown
from helpers.sources import MANIFEST, resolve
from helpers.training import train
from tests.shared import losses

import pytest
import torch

SHORT = {"max_steps": 12, "save_steps": 4, "dropout": 0.1}  # dropout, so that random states count


def stop_after(monkeypatch, step: int) -> None:
    """Interrupt the cell, as the stop button does, after a step has been logged."""
    real = Steps.on_log

    def on_log(self, args, state, control, **more):
        real(self, args, state, control, **more)
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Steps, "on_log", on_log)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, data):
    """A run that nothing interrupts and that keeps no checkpoints: what every resumed run must equal."""
    folder = str(tmp_path_factory.mktemp("straight"))
    return train(settings_for("tiny", "lora", runs_dir=folder, **SHORT | {"save_steps": 0}), data)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data):
    """The folder of a run that was interrupted after step 10: checkpoints 4 and 8."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 10)
        train(settings_for("tiny", "lora", runs_dir=str(folder), **SHORT), data)
    return folder


@pytest.fixture
def unfinished(stopped, tmp_path):
    """The settings of a copy of that run, and the folder of its checkpoints."""
    shutil.copytree(stopped, tmp_path / "runs")
    settings = settings_for("tiny", "lora", runs_dir=str(tmp_path / "runs"), **SHORT)
    return settings, settings.folder / "checkpoints"


def test_an_interrupted_run_resumes_to_the_same_losses_and_weights(unfinished, straight, data, capsys):
    settings, folder = unfinished
    assert sorted(f.name for f in folder.iterdir()) == ["checkpoint-4", "checkpoint-8"]
    resumed = train(settings, data)
    assert "resuming after step 8" in capsys.readouterr().out
    assert losses(resumed) == losses(straight)
    assert resumed.record.training["resumed_from"] == 8 and straight.record.training["resumed_from"] is None
    assert resumed.record.steps[-1]["seconds"] > resumed.record.steps[7]["seconds"] > 0
    for (name, a), b in zip(resumed.model.named_parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    resumed.record.save(resumed.folder)
    assert sorted(f.name for f in resumed.folder.iterdir()) == ["adapter", "record.json"]


@pytest.mark.parametrize("method", ["full", "dora"])
def test_every_method_resumes_to_the_same_losses(tmp_path, data, method, monkeypatch):
    settings = settings_for("tiny", method, runs_dir=str(tmp_path / "a"), max_steps=12)
    expected = losses(train(settings, data))
    settings = settings.change(runs_dir=str(tmp_path / "b"), save_steps=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 11)
        train(settings, data)
    resumed = train(settings, data)
    assert losses(resumed) == expected and resumed.record.training["resumed_from"] == 9


def test_a_run_killed_in_its_evaluation_trains_no_step_again(unfinished, straight, data, capsys):
    settings, _ = unfinished
    train(settings, data)  # and no record is saved
    again = train(settings, data)
    assert again.record.training["resumed_from"] == 12 and losses(again) == losses(straight)


KILLED_IN_THE_OPTIMIZER = """
import os, signal, sys, torch
import helpers
from helpers.data import prepare
from helpers.models import load_tokenizer
from helpers.settings import settings_for
from helpers.sources import MANIFEST, resolve
from helpers.training import train

settings = settings_for("tiny", "lora", runs_dir=sys.argv[1], max_steps=12, save_steps=4, dropout=0.1)
real = torch.save

def save(content, file, *more, **options):
    real(content, file, *more, **options)
    if "checkpoint-8" in str(file) and "optimizer" in str(file):
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save
train(settings, prepare(settings, load_tokenizer(resolve(settings))))
"""


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_from_the_one_before(tmp_path, straight, data, capsys):
    settings = settings_for("tiny", "lora", runs_dir=str(tmp_path), **SHORT)
    done = subprocess.run([sys.executable, "-c", KILLED_IN_THE_OPTIMIZER, str(tmp_path)], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    broken = settings.folder / "checkpoints/checkpoint-8"
    assert (broken / "optimizer.pt").is_file() and not (broken / MANIFEST).exists()
    resumed = train(settings, data)
    assert "passed over: checkpoint-8: its writing was never finished" in capsys.readouterr().out
    assert resumed.record.training["resumed_from"] == 4 and losses(resumed) == losses(straight)


def begin(settings, data, resume: bool = True):
    """The checkpoint from which a training of these settings would resume."""
    rows, base = [row for batch in training_order(data, settings) for row in batch], resolve(settings)
    chosen = plan(settings, base.shape, max(len(row.input_ids) for row in rows))
    given = conditions(settings, base, fingerprint(rows), chosen)
    return Checkpoints(settings.folder, given).begin(resume)


def test_a_truncated_checkpoint_is_passed_over(unfinished, straight, data, capsys):
    settings, folder = unfinished
    file = folder / "checkpoint-8" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-500])
    resumed = train(settings, data)
    out = capsys.readouterr().out
    assert (
        f"passed over: checkpoint-8: {shown(folder)}/checkpoint-8/{WEIGHTS} is missing or damaged" in out
        and "resuming after step 4" in out
    )
    assert losses(resumed) == losses(straight)
    assert resumed.record.training["passed_over"][0].startswith("checkpoint-8")


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_checkpoint_that_lacks_a_file_is_passed_over(unfinished, data, capsys, name):
    settings, folder = unfinished
    (folder / "checkpoint-8" / name).unlink()
    assert begin(settings, data).step == 4
    assert f"passed over: checkpoint-8: {shown(folder)}/checkpoint-8/{name} is missing" in capsys.readouterr().out


def test_without_a_whole_checkpoint_a_run_starts_again(unfinished, data, capsys):
    settings, folder = unfinished
    for step in (4, 8):
        shutil.rmtree(folder / f"checkpoint-{step}")
        (folder / f"checkpoint-{step}").mkdir()
    assert begin(settings, data) is None
    assert "no whole checkpoint is left: starting again from step 0" in capsys.readouterr().out
    shutil.rmtree(settings.folder)
    assert begin(settings, data) is None
    assert capsys.readouterr().out == ""


def test_checkpoints_of_other_settings_are_refused_and_kept(unfinished, data):
    settings, folder = unfinished
    changed = settings.change(learning_rate=0.02, rank=4)
    with pytest.raises(TrainingError) as error:
        train(changed, data)
    assert "rank was 8 and is 4; learning_rate was 0.01 and is 0.02" in str(error.value)
    assert "delete the folder (or call train(..., resume=False)) to start again" in str(error.value)
    assert (folder / "checkpoint-8" / MANIFEST).is_file()  # a refusal destroys nothing
    with pytest.raises(GuardError, match="the adapter has another rank or other layers than you set"):
        train(settings, data, adapter=adapter_config(settings.change(rank=4)))
    fewer = replace(data, train=data.train[:100])
    with pytest.raises(TrainingError, match="rows and their order was "):
        train(settings, fewer)
    assert begin(settings.change(save_steps=3, max_new_tokens=9), data).step == 8  # these decide no loss
    assert begin(changed, data, resume=False) is None and not any(folder.iterdir())


def test_a_finished_run_survives_a_later_training_that_fails(tmp_path, data, monkeypatch):
    """Its files and its record are replaced only when the next result is written whole."""
    settings = settings_for("tiny", "lora", runs_dir=str(tmp_path), max_steps=2)
    first = train(settings, data)
    first.record.save(first.folder)
    files = {f: f.read_bytes() for f in settings.folder.rglob("*") if f.is_file()}

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for fails in ("compute_loss", "exact_weights"):
        with monkeypatch.context() as patch, pytest.raises(TrainingError, match="ran out of memory"):
            patch.setattr(Trainer, fails, full)
            train(settings.change(seed=0, learning_rate=0.02), data)
        assert {f: f.read_bytes() for f in settings.folder.rglob("*") if f.is_file()} == files
    monkeypatch.setattr("helpers.engine.run.save_adapter", full)
    with pytest.raises(TrainingError, match="ran out of memory"):
        train(settings, data)
    assert {f: f.read_bytes() for f in settings.folder.rglob("*") if f.is_file()} == files


def test_a_disk_that_fills_up_leaves_the_checkpoint_before_and_nothing_partial(unfinished, data, monkeypatch):
    settings, folder = unfinished
    real, before = Trainer._save_optimizer_and_scheduler, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, output_dir):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            real(self, output_dir)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(TrainingError, match="checkpoint-12 could not be written .*and was removed: free some space"):
        train(settings, data)
    assert sorted(f.name for f in folder.iterdir()) == ["checkpoint-8"]  # to resume from, and nothing partial
