"""Run records: written in one step, validated when read, and never guessed at."""

import json
import os

from helpers import records
from helpers.records import RecordError, RunRecord

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
        (lambda raw: [raw], "not a run record"),
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


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    records.write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RecordError, match="No space left on device"):
        records.write_atomically(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]


def test_environment_is_an_allow_list(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in json.dumps(records.environment())
    assert records.environment()["trl"]


@pytest.mark.parametrize("name", ["small-h200", "sweep-h200", "llama2-7b-shape-h200"])
def test_reference_records_load_and_say_where_they_come_from(name):
    shipped = records.load_reference(name)
    assert shipped
    for record in shipped:
        assert record.device["name"] and record.finished and len(record.commit) == 40 and record.dirty is False


def test_git_state_outside_a_repository(tmp_path):
    assert records.git_state(tmp_path) == (None, None)
