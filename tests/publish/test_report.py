"""`make report`: what the archive holds, what it does not hold, and the rows that are made from it."""

import getpass
import json
import zipfile
from pathlib import Path

from helpers.doctor import Finding, Report
from helpers.publish import report
from helpers.records import REFERENCE

import pytest

RECORD = (REFERENCE / "small-h200" / "lora-s0.json").read_text(encoding="utf-8")
RUNG = {"name": "bf16", "tokens_per_second": 1234.5, "peak": 2.5e9}


@pytest.fixture
def series(tmp_path, monkeypatch):
    """A folder of runs: one record, a ladder, and a status that quotes a secret and a path of this account."""
    monkeypatch.setenv("HF_TOKEN", "Hidden-Value-12345")
    monkeypatch.setattr(report, "look", lambda: None)  # the doctor has tests of its own, and takes seconds
    monkeypatch.setattr(report, "examine", lambda machine: Report([Finding("ok", "a card of Hidden-Value-12345")]))
    folder = tmp_path / "small"
    (folder / "lora-s0").mkdir(parents=True)
    (folder / "lora-s0" / "record.json").write_text(RECORD)
    (folder / "speed.json").write_text(json.dumps({"device": {"name": "MI300X"}, "rungs": [RUNG]}))
    why = f"Hidden-Value-12345 in {Path.home()}/secret by {getpass.getuser()}, hf_{'a' * 20}"
    (folder / "status.json").write_text(json.dumps({"notebooks": {"02_lora_train": {"why": why}}}))
    return folder


def test_an_archive_holds_the_results_and_no_secret_and_comes_back_as_rows(series, tmp_path):
    texts = report.collect(series)
    assert {"doctor.txt", "packages.txt", "status.json", "speed.json", "lora-s0/record.json"} == set(texts)
    assert "torch==" in texts["packages.txt"] and "ok" in texts["doctor.txt"]
    everything = "\n".join(texts.values())
    for hidden in ("Hidden-Value", "hf_aaaa", f"{Path.home()}/secret"):
        assert hidden not in everything
    assert json.loads(texts["status.json"])["notebooks"]["02_lora_train"]["why"].startswith("*** in HOME/secret by ")
    report.write(texts, tmp_path / "report.zip")
    rows = report.table(*report.read(tmp_path / "report.zip"))
    made = json.loads(RECORD)
    speed, peak = made["training"]["tokens_per_second"], made["memory"]["peak"] / 1e9
    assert f"| torch 2.11.0, CUDA 13.0 | `small`, lora, seed 0 | 120 | {speed:,.0f} | {peak:.1f} GB |" in rows
    assert f"| {made['device']['name']} sm_90 |" in rows
    assert "| MI300X | bf16 | 1,234 | 2.5 GB |" in rows


def test_nothing_is_written_before_somebody_agrees(series, monkeypatch, capsys):
    monkeypatch.setattr(report, "write", lambda texts, target: pytest.fail("written"))
    assert report.main(["--runs-dir", str(series.parent)]) == 2
    shown = capsys.readouterr().out
    assert "Nothing was written" in shown and "lora-s0/record.json" in shown and "a card of ***" in shown
    for answers in (["n"], ["s", ""]):
        said = iter(answers)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("builtins.input", lambda question, said=said: next(said))
        assert report.main(["--runs-dir", str(series.parent)]) == 0
    assert "----- packages.txt -----" in capsys.readouterr().out


def archive(path: Path, **entries: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in entries.items():
            packed.writestr(f"{name}/record.json", text)
    return path


def test_what_is_no_report_is_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "text.zip").write_text("no archive")
    whole = archive(tmp_path / "whole.zip", run=RECORD).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    archive(tmp_path / "list.zip", run="[]")
    archive(tmp_path / "large.zip", run=" " * (report.LARGEST + 1))
    for name in ("text", "cut", "list", "large", "missing"):
        assert report.main(["--rows", str(tmp_path / f"{name}.zip")]) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: {name}.zip") and message.count("\n") == 1
