"""A checkpoint with anything wrong in it is passed over in one sentence; what is none of this project's stays."""

import json
import shutil

from helpers.engine.checkpoints import SEAL, WEIGHTS, Checkpoints
from helpers.records import RunRecord
from helpers.settings import settings_for
from helpers.sources import ModelError
from helpers.training import train

import pytest
import torch

GIVEN = {"learning_rate": 0.01, "rank": 8, "base weights": "0123"}


@pytest.fixture
def unfinished(tmp_path):
    """The folder of a run with two checkpoints, 4 and 8, written as a training writes them."""
    for step in (4, 8):
        steps = [{"step": n, "loss": 1 / n, "grad_norm": None} for n in range(1, step + 1)]
        with Checkpoints(tmp_path / "run", GIVEN).saving(torch.nn.Linear(2, 2), steps, 0.5):
            folder = tmp_path / f"run/checkpoints/checkpoint-{step}"
            folder.mkdir(parents=True)
            (folder / WEIGHTS).write_bytes(bytes(range(256)))
    return tmp_path / "run"


WRONG = ["", "{}", "null", "[]", "[" * 100_000, '{"steps": 1' + "0" * 5000 + "}", '{"files": {}, "steps": []}', "\x00"]


def in_seal(edit):
    """A spoiler that edits the JSON of the seal."""

    def spoil(file):
        seal = json.loads(file.read_text())
        edit(seal)
        file.write_text(json.dumps(seal))

    return spoil


SPOILT = {
    "damaged weights": (WEIGHTS, lambda f: f.write_bytes(f.read_bytes()[:-64] + bytes(64)), f"{WEIGHTS} is damaged"),
    "weights in a loop": (WEIGHTS, lambda f: f.unlink() or f.symlink_to(f.name), f"{WEIGHTS} is missing"),
    "truncated": (SEAL, lambda f: f.write_bytes(f.read_bytes()[:-50]), f"{SEAL} is damaged"),
    "a folder": (SEAL, lambda f: f.unlink() or f.mkdir(), f"{SEAL} is damaged"),
    "another number": (SEAL, in_seal(lambda s: s["steps"][0].update(loss=0)), f"{SEAL} is damaged"),
    "no files": (SEAL, in_seal(lambda s: s["files"].clear()), f"{SEAL} is damaged"),
    "steps of another shape": (SEAL, in_seal(lambda s: s.update(steps={"a": []})), f"{SEAL} is damaged"),
} | {
    f"wrong shape {n}": (SEAL, lambda f, t=text: f.write_text(t), f"{SEAL} is damaged") for n, text in enumerate(WRONG)
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_damaged_checkpoint_is_passed_over_and_removed(unfinished, capsys, case):
    name, spoil, words = SPOILT[case]
    folder = unfinished / "checkpoints"
    spoil(folder / "checkpoint-8" / name)
    assert Checkpoints(unfinished, GIVEN).begin(True).step == 4
    assert f"passed over: checkpoint-8: {words}" in capsys.readouterr().out
    assert [f.name for f in folder.iterdir()] == ["checkpoint-4"]  # what is broken does not stay


def test_a_renamed_or_linked_checkpoint_is_passed_over_and_other_files_stay(unfinished, capsys, tmp_path):
    folder = unfinished / "checkpoints"
    shutil.copytree(folder / "checkpoint-8", tmp_path / "elsewhere")
    (folder / "checkpoint-8").rename(folder / "checkpoint-119")
    (folder / "checkpoint-12").symlink_to(tmp_path / "elsewhere")
    (folder / "checkpoint-16").symlink_to(tmp_path / "nowhere")
    kept = ["checkpoint-8-backup", "checkpoint-08", "checkpoint-\u00b2", "notes.txt"]
    for name in kept:
        (folder / name).mkdir()
    assert Checkpoints(unfinished, GIVEN).begin(True).step == 4
    out = capsys.readouterr().out
    assert "checkpoint-119: it was renamed: it holds step 8" in out and f"is a link to {tmp_path / 'elsewhere'}" in out
    assert sorted(f.name for f in folder.iterdir()) == sorted([*kept, "checkpoint-4"])
    assert (tmp_path / "elsewhere" / SEAL).is_file()
    RunRecord("lora", "tiny", 0).save(unfinished)
    assert sorted(f.name for f in folder.iterdir()) == sorted(kept)


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
@pytest.mark.parametrize("what", ["a file of yours", "a link", "a file in its place"])
def test_a_training_never_replaces_what_it_did_not_write(tmp_path, data, method, what):
    settings = settings_for("tiny", method, runs_dir=str(tmp_path), max_steps=1)
    result, mine = settings.folder / ("model" if method == "full" else "adapter"), tmp_path / "mine"
    mine.mkdir()
    settings.folder.mkdir(parents=True)
    if what == "a link":
        result.symlink_to(mine)
    elif what == "a file in its place":
        result.write_text("mine")
    else:
        result.mkdir()
        (result / "notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelError, match="so it is left alone: move it away"):
        train(settings, data)
    assert sorted(tmp_path.rglob("*")) == before and mine.is_dir()
