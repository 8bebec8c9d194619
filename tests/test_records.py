"""Run records: written in one step, validated when read, and never guessed at."""

import json
import os
import shutil
from pathlib import Path

from helpers import comparison, records
from helpers.records import RecordError, RunRecord, folder_sizes, load_series
from helpers.sources import ModelError, check_replaceable
from helpers.storage import COPIES

import pytest


def test_round_trip(tmp_path):
    record = RunRecord(method="lora", profile="tiny", seed=3, training={"loss": float("nan")})
    path = record.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]
    again = records.load(tmp_path)
    assert (again.method, again.seed, again.status) == ("lora", 3, "ok")
    assert again.training["loss"] is None  # JSON knows no NaN; unknown is null
    assert json.loads(path.read_text())["finished"].endswith("Z")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: raw | {"version": 0}, "version 0, this code reads version 1"),
        (lambda raw: {k: v for k, v in raw.items() if k != "guards"}, "lacks guards"),
        (lambda raw: raw | {"gaurds": []}, "unknown gaurds"),
        (lambda raw: raw | {"seed": "three"}, "seed should be of type int"),
        (lambda raw: raw | {"status": "started"}, "did not finish"),
        (lambda raw: [raw], "should hold a JSON object, not list; run the notebook that wrote it again"),
        (lambda raw: {}, "lacks version; run the notebook that wrote it again"),
        (lambda raw: raw | {"steps": [1]}, "damaged: steps is of another type"),
        (lambda raw: raw | {"files": {"adapter": "7"}}, "damaged: files.adapter is of another type"),
    ],
)
def test_a_spoilt_record_says_what_is_wrong(tmp_path, spoil, words):
    path = RunRecord(method="lora", profile="tiny", seed=0).save(tmp_path)
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(RecordError, match=words):
        records.load(path)


def test_a_truncated_or_missing_record_says_so(tmp_path):
    path = RunRecord(method="lora", profile="tiny", seed=0).save(tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(RecordError, match="damaged"):
        records.load(path)
    with pytest.raises(RecordError, match="no finished run"):
        records.load(tmp_path / "nowhere")


BROKEN = {
    "": "Expecting value",
    "[" * 100_000: "nested too deeply",
    '{"a": ' * 60 + "1" + "}" * 60: "nested too deeply",
    '{"a": ' + "9" * 5000 + "}": "a number in it is too large",
    '{"a": 1e999}': "a number in it is too large",
    '{"a": NaN}': "is not a number",
    '{"a": "\\ud800"}': "surrogates not allowed",
    "null": "should hold a JSON object, not NoneType",
    "{}": "lacks seed",
    '{"seed": "1"}': "seed should be of type int, not str",
    '{"seed": true}': "seed should be of type int, not bool",
}


@pytest.mark.parametrize(("text", "words"), BROKEN.items(), ids=range(len(BROKEN)))
def test_a_json_file_of_the_wrong_shape_raises_the_callers_own_sentence(tmp_path, text, words):
    path = tmp_path / "any.json"
    path.write_text(text)
    with pytest.raises(ZeroDivisionError, match=words) as raised:
        records.read_json(path, ZeroDivisionError, {"seed": int})
    assert str(raised.value).startswith(str(path)) and len(str(raised.value)) < 400


def test_what_is_no_readable_file_is_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        records.read_json(tmp_path / "nowhere", RecordError)
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(RecordError, match="cannot be read: it is not a regular file"):
            records.read_json(path, RecordError)
    monkeypatch.setattr("helpers.storage.MAX_JSON_BYTES", 1)
    (tmp_path / "any.json").write_text("{}")
    with pytest.raises(RecordError, match="of at most"):
        records.read_json(tmp_path / "any.json", RecordError)


def test_a_readable_json_file_is_returned(tmp_path):
    (tmp_path / "any.json").write_text('{"rate": 1, "names": ["ä"], "loss": null}')
    value = records.read_json(tmp_path / "any.json", RecordError, {"rate": int, "names": list, "loss": float | None})
    assert value == {"rate": 1, "names": ["ä"], "loss": None}


def test_a_hash_follows_the_file_and_not_its_times(tmp_path):
    path = tmp_path / "any"
    path.write_text("one")
    before = records.sha256(path)
    times = path.stat()
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert records.sha256(path) != before


def test_a_write_follows_no_link(tmp_path):
    (tmp_path / "private").write_text("private")
    for name in ("file", f".file.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "private")
    records.write_atomically(tmp_path / "file", "new \ud800")
    assert (tmp_path / "private").read_text() == "private"
    assert (tmp_path / "file").read_text() == "new \\ud800" and not (tmp_path / "file").is_symlink()


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    records.write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RecordError, match="No space left on device"):
        records.write_atomically(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("moment", ["unlink", "fsync", "replace"])
def test_a_write_survives_that_its_folder_is_deleted_meanwhile(tmp_path, monkeypatch, moment):
    path = tmp_path / "run" / "status.json"
    owner = Path if moment == "unlink" else os
    real, deleted = getattr(owner, moment), []

    def delete_first(*given, **options):
        if not deleted:
            deleted.append(shutil.rmtree(path.parent))
        return real(*given, **options)

    monkeypatch.setattr(owner, moment, delete_first)
    records.write_atomically(path, "new")
    assert deleted and path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["status.json"]


def test_environment_is_an_allow_list(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in json.dumps(records.environment())
    assert records.environment()["trl"]


@pytest.mark.parametrize("name", ["small-cpu", "small-h200", "llama2-7b-shape-h200"])
def test_reference_records_load_and_say_where_they_come_from(name):
    shipped = records.load_reference(name)
    assert shipped
    for record in shipped:
        assert record.device["name"] and record.finished and len(record.commit) == 40 and record.dirty is False


def test_git_state_outside_a_repository(tmp_path):
    assert records.git_state(tmp_path) == (None, None)


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: r.decisions["kernels"].update(value=1),
        lambda r: r.data.pop("order"),
        lambda r: r.evaluation["families"].pop(),
        lambda r: r.evaluation["exact_match"].__setitem__(0, 500),
        lambda r: r.evaluation["unrelated"]["losses"].pop(),
        lambda r: r.training.update(trainable=0),
        lambda r: r.evaluation["prose"]["replies"][0].pop("reply"),
    ],
)
def test_a_record_that_was_edited_is_one_sentence(edit):
    """What no type tells: 04 reads all of this from records, and a record is a file that anybody can open."""
    edited = [r for r in records.load_reference("small-h200") if r.seed == 0]
    edit(next(r for r in edited if r.method == "lora"))
    readers = ("comparability", "table", "by_family", "side_by_side", "conclusions")
    with pytest.raises(comparison.NotComparable) as refusal:
        for name in readers:
            getattr(comparison, name)(edited)
    assert "\n" not in str(refusal.value) and "run its notebook again" in str(refusal.value)


def test_a_copied_run_is_no_second_seed(runs, tmp_path, capsys):
    for name in ("lora-s0", "lora-s0-rank8", "lora-s1", "lora-s0 (copy)"):
        runs.lora.record.save(tmp_path / name)
    assert [(r.method, r.seed) for r in load_series(tmp_path)] == [("lora", 0)]
    assert capsys.readouterr().out.count("holds a copy of lora-s0, so it is left out") == 3


def test_what_jupyterlab_copies_is_neither_lost_nor_in_the_way(runs, tmp_path):
    folder = shutil.copytree(runs.lora.folder, tmp_path / "lora-s0")
    for place in (folder, folder / "adapter"):
        (place / COPIES).mkdir()
        (place / COPIES / "any-checkpoint.json").write_text("{}")
    assert folder_sizes(folder) == folder_sizes(runs.lora.folder)
    check_replaceable(folder / "adapter")
    (folder / "adapter/mine.txt").write_text("a note")
    with pytest.raises(ModelError, match="mine.txt"):
        check_replaceable(folder / "adapter")
