"""A notebook counts as passed while every file that it used and made is what it was: told by contents, never by times."""

import json
import os
import shutil
from pathlib import Path

from helpers import records
from helpers.headless import status as status_file
from helpers.headless.status import STATES, Status, states
from helpers.records import RunRecord
from helpers.settings import ROOT

import pytest


@pytest.fixture
def passed(book, monkeypatch):
    """Two notebooks that passed: the first made a record with an adapter, the second read it, and both used data and code."""
    monkeypatch.setattr(status_file, "HELPERS", book.folder / "helpers")
    first, second = book.write("00_first", "1", records=["lora"]), book.write("01_second", "2")
    rows, code = book.folder / "rows.jsonl", book.folder / "helpers/data.py"
    code.parent.mkdir()
    rows.write_text("{}")
    code.write_text("1")
    given = {"seed": 0, "data": str(rows)}
    adapter, record = (
        book.out / "lora-s0/adapter/weights",
        RunRecord("lora", "tiny", 0, finished="2026-01-01T00:00:00Z"),
    )
    adapter.parent.mkdir(parents=True)
    adapter.write_bytes(b"weights")
    record.files = {"adapter/weights": 7, "adapter/README.md": 5}
    path = record.save(book.out / "lora-s0")
    status = Status(book.out, "tiny")
    (book.out / "notebooks").mkdir()
    for notebook, read in ((first, [code]), (second, [code, path])):
        used = status.used(notebook, given, states(notebook, given), [str(file) for file in read])
        status.update(notebook, status="ok", used=used, parameters=given)
        (book.out / "notebooks" / notebook.name).touch()
    book.files = {"rows": rows, "code": code, "record": path, "adapter": adapter, "status": book.out / "status.json"}

    def again(**parameters) -> list[str]:
        status = Status(book.out, "tiny")
        return [n.stem for n in (first, second) if not status.up_to_date(n, given | parameters)]

    book.again = again
    assert again() == []
    return book


BOTH = ["00_first", "01_second"]


def test_only_what_changed_is_run_again(passed):
    assert passed.again(seed=1) == BOTH and passed.again(learning_rate=1e-4) == BOTH
    passed.write("01_second", "3")
    assert passed.again() == ["01_second"]
    passed.write("01_second", "2")
    (passed.folder / "helpers/doctor.py").write_text("code that neither of them read")
    assert passed.again() == ["01_second"], "cells have names of their own"


@pytest.mark.parametrize("name", ["rows", "code", "record"])
def test_a_file_that_was_used_counts_by_its_content_and_not_by_its_times(passed, name):
    path = passed.files[name]
    former, times = path.read_bytes(), path.stat()
    changed = former.replace(b"2026", b"2027") if name == "record" else former[::-1]
    path.write_bytes(changed if changed != former else b"2")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert passed.again() == BOTH
    path.write_bytes(former)
    os.utime(path, (1, 1))  # a clock that was wrong
    assert passed.again() == []


@pytest.mark.parametrize("how", ["removed", "shortened", "a folder", "a dangling link"])
def test_a_record_without_its_files_does_not_count_as_finished(passed, how):
    adapter = passed.files["adapter"]
    adapter.unlink()
    if how == "shortened":
        adapter.write_bytes(b"weigh")
    elif how == "a folder":
        adapter.mkdir()
    elif how == "a dangling link":
        adapter.symlink_to("nowhere")
    assert passed.again() == ["00_first"]
    assert records.lost_files(records.load(passed.files["record"]), passed.out / "lora-s0") == ["adapter/weights"]


def test_a_lost_adapter_is_made_again_by_the_same_command(book):
    save = (
        "from pathlib import Path\nfrom helpers.records import RunRecord\n"
        f"folder = Path({str(book.out / 'lora-s0')!r})\nfolder.mkdir(exist_ok=True)\n"
        "(folder / 'adapter').write_text('weights')\nimport time\n"
        "RunRecord('lora', 'tiny', 0, note=str(time.time()), files={'adapter': 7}).save(folder)"
    )
    book.write("00_first", save, records=["lora"])
    assert book.run() == "ok" == book.run() and book.lines[0] == "00_first  passed before, nothing changed"
    (book.out / "lora-s0/adapter").unlink()
    assert book.run() == "ok" and book.lines[0] == "00_first  running"
    assert (book.out / "lora-s0/adapter").is_file()


EDITS = {  # the code of a cell, with `extra` the file that is edited
    "nothing": "import helpers.extra",
    "before its import, then back": "import os\nos.system(f'echo value = 2 > {extra}')\nimport helpers.extra\n"
    "assert helpers.extra.value == 2\nos.system(f'echo value = 1 > {extra}')",
    "after its import": "import helpers.extra, os\nassert helpers.extra.value == 1\nos.system(f'echo value = 2 > {extra}')",
    "the rows": "import os\nos.system(f'echo other >> {extra}')",
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_edited_while_a_notebook_runs_does_not_count_as_what_it_used(book, edit, monkeypatch):
    """The kernel imports a helper from a copy of this package, and a cell does what an editor would."""
    copy, rows = book.folder.parent / "copy/helpers", book.folder / "rows.jsonl"
    shutil.copytree(ROOT / "helpers", copy, ignore=shutil.ignore_patterns("__pycache__", "reference"))
    (copy / "extra.py").write_text("value = 1\n")
    rows.write_text("{}")
    monkeypatch.setenv("PYTHONPATH", str(copy.parent))
    monkeypatch.setattr(status_file, "HELPERS", copy)
    notebook = book.write(
        "00_any", f"extra = {str(rows if edit == 'the rows' else copy / 'extra.py')!r}\n{EDITS[edit]}"
    )
    assert book.run(parameters={"data": str(rows)}) == "ok"
    up_to_date = Status(book.out, "tiny").up_to_date(notebook, book.entry("00_any")["parameters"])
    assert up_to_date == (edit == "nothing")


def test_the_kernel_names_the_helpers_and_records_that_it_read(book):
    for run in ("lora-s0", "full-s0"):
        RunRecord("lora", "tiny", 0).save(book.out / run)
    load = f"from helpers.records import load\nrecord = load({str(book.out / 'lora-s0')!r})"
    save = f"from pathlib import Path\nrecord.save(Path({str(book.out / 'full-s0')!r}))\nload({str(book.out / 'full-s0')!r})"
    notebook = book.write("00_any", load, "import helpers.optimizer", save)
    assert book.run() == "ok"
    used = book.entry("00_any")["used"]
    assert {"helpers/optimizer.py", "helpers/profiles.toml", str(book.out / "lora-s0/record.json")} < {*used}
    assert str(notebook) in used and "helpers/comparison/tables.py" not in used
    assert not [name for name in used if "headless" in name and "notebooks" not in name]
    assert str(book.out / "full-s0/record.json") not in used, "a record that the notebook itself wrote is a result"


SPOILT = [
    "",
    "{}",
    "null",
    "[]",
    '{"notebooks": 1}',
    '{"notebooks": [',
    "[" * 50_000,
    '{"notebooks": ' + "9" * 5000 + "}",
]


@pytest.mark.parametrize("text", SPOILT, ids=range(len(SPOILT)))
def test_a_damaged_status_counts_nothing_as_passed_and_is_named(passed, text):
    passed.files["status"].write_text(text)
    assert passed.again() == BOTH and Status(passed.out, "tiny").damaged


@pytest.mark.parametrize(
    "change",
    [{"status": "fine"}, {"status": None}, {"used": []}, {"used": {}}, {"used": [1]}, {"used": None}, {"parameters": 1},
     {"seconds": "long"}, {"cell": "2"}, {"why": ["x"]}, {"used": {"\0": "1"}}],
)  # fmt: skip
def test_a_damaged_entry_counts_as_never_run_and_the_others_stay(passed, change):
    content = json.loads(passed.files["status"].read_text())
    content["notebooks"]["00_first"] |= change
    passed.files["status"].write_text(json.dumps(content))
    assert passed.again() == ["00_first"]
    assert set(STATES) > {entry["status"] for entry in Status(passed.out, "tiny").notebooks.values()}


def test_what_a_parameters_cell_says_counts_like_what_is_given(book, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    book.PARAMETERS = book.PARAMETERS.replace("seed = 0", "seed = 1").replace("data = None", f"data = {str(rows)!r}")
    notebook, status = book.write("00_any", "1", records=["lora"]), Status(book.out, "tiny")
    for given, seed in (({}, 1), ({"seed": 2}, 2)):
        assert [Path(name).parent.name for name in status.records(notebook, given)] == [f"lora-s{seed}"]
        assert str(rows) in status.used(notebook, given, states(notebook, given), [])
    assert str(rows) not in status.used(notebook, {"data": "bundled"}, {}, [])
    (tmp_path / "all/.ipynb_checkpoints").mkdir(parents=True)
    for name in ("rows.jsonl", ".ipynb_checkpoints/rows-checkpoint.jsonl"):  # JupyterLab makes the second
        (tmp_path / "all" / name).write_text("{}")
    used = status.used(notebook, {"data": str(tmp_path / "all")}, {}, [])
    assert str(tmp_path / "all/rows.jsonl") in used and not any(".ipynb_checkpoints" in name for name in used)
