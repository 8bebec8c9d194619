"""A checkpoint with anything wrong in it is passed over in one sentence; what is none of this project's stays."""

import json
import shutil

from helpers.engine.checkpoints import STATE, Checkpoints
from helpers.engine.trainer import WEIGHTS
from helpers.records import RunRecord
from helpers.settings import settings_for
from helpers.sources import MANIFEST, ModelError
from helpers.training import train

import pytest

GIVEN = {"learning_rate": 0.01, "rank": 8, "base weights": "0123"}


@pytest.fixture
def unfinished(tmp_path):
    """The folder of a run with two checkpoints, 4 and 8, written as a training writes them."""
    for step in (4, 8):
        steps = [{"step": n, "loss": 1 / n, "grad_norm": None} for n in range(1, step + 1)]
        with Checkpoints(tmp_path / "run", GIVEN).saving(steps, 0.5):
            folder = tmp_path / f"run/checkpoints/checkpoint-{step}"
            folder.mkdir(parents=True)
            (folder / WEIGHTS).write_bytes(bytes(range(256)))
    return tmp_path / "run"


WRONG = ["", "{}", "null", "[]", "[" * 100_000, '{"steps": 1' + "0" * 5000 + "}", '{"files": {}, "steps": []}', "\x00"]


def edited(edit):
    """A spoiler that edits the JSON in a file."""

    def spoil(file):
        value = json.loads(file.read_text())
        edit(value)
        file.write_text(json.dumps(value))

    return spoil


SPOILT = {
    "damaged weights": (
        WEIGHTS,
        lambda f: f.write_bytes(f.read_bytes()[:-64] + bytes(64)),
        f"{WEIGHTS} is missing or damaged",
    ),
    "weights in a loop": (WEIGHTS, lambda f: f.unlink() or f.symlink_to(f.name), f"{WEIGHTS} is missing or damaged"),
    "truncated": (STATE, lambda f: f.write_bytes(f.read_bytes()[:-50]), f"{STATE} is missing or damaged"),
    "a folder": (STATE, lambda f: f.unlink() or f.mkdir(), f"{STATE} is missing or damaged"),
    "another number": (STATE, edited(lambda s: s["steps"][0].update(loss=0)), f"{STATE} is missing or damaged"),
    "a manifest that is a folder": (MANIFEST, lambda f: f.unlink() or f.mkdir(), "it is not a regular file"),
    "no files": (MANIFEST, edited(dict.clear), f"{MANIFEST} does not list {WEIGHTS}"),
}
for number, text in enumerate(WRONG):
    SPOILT[f"wrong shape {number}"] = (STATE, lambda f, t=text: f.write_text(t), f"{STATE} is missing or damaged")
    SPOILT[f"wrong manifest {number}"] = (MANIFEST, lambda f, t=text: f.write_text(t), MANIFEST)


@pytest.mark.parametrize("case", SPOILT)
def test_a_damaged_checkpoint_is_passed_over_and_removed(unfinished, capsys, case):
    name, spoil, words = SPOILT[case]
    folder = unfinished / "checkpoints"
    spoil(folder / "checkpoint-8" / name)
    assert Checkpoints(unfinished, GIVEN).begin(True).step == 4
    out = capsys.readouterr().out
    assert out.startswith("passed over: checkpoint-8: ") and words in out.splitlines()[0]
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
    assert (tmp_path / "elsewhere" / STATE).is_file()
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
