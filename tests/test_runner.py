"""The headless runner under faults: what stopped is said, nothing is left behind, what passed is not run again."""

import json
import os
import signal
import subprocess
import sys
import time

from helpers import runner
from helpers.records import RunRecord
from helpers.runner import EXIT, Options, UsageError, find_notebooks, parameters_of, parse_parameters, run_series
from helpers.settings import ROOT
from helpers.summary import mask_secrets

import nbformat
import psutil
import pytest

PARAMETERS = 'profile = "tiny"\nseed = 0\nmax_steps = None\nlearning_rate = None\ndata = None\nruns_dir = "runs"'


def write_notebook(folder, name, *cells, records=()):
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_markdown_cell("## A step"),
        *map(nbformat.v4.new_code_cell, cells),
    ])  # fmt: skip
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    if records:
        notebook.metadata["fine_tuning"] = {"records": list(records)}
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A folder of notebooks that the runner takes for the series, and options for an output folder of its own."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    return folder


def run(tmp_path, **changes) -> tuple[str, dict, list[str]]:
    lines: list[str] = []
    options = Options(
        profile="tiny", parameters=changes.pop("parameters", {}), runs_dir=str(tmp_path / "out"), **changes
    )
    end = run_series(find_notebooks(), options, lines.append)
    return end, json.loads((options.folder / "status.json").read_text())["notebooks"], lines


@pytest.fixture(scope="module")
def real():
    return find_notebooks()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr=5", "no notebook that would run has a parameter 'lrr'"),
        ("max_step=5", "did you mean 'max_steps'"),
        ("max_steps=many", "max_steps must be of type int, not 'many'"),
        ("max_steps=0", "max_steps must be at least 1"),
        ("learning_rate=fast", "learning_rate must be of type float"),
        ("seed=1 seed=2", "seed is given twice"),
        ("seed", "not of the form name=value"),
        ("seed=", "not of the form name=value"),
        ("profile=small", "make run-all PROFILE=small"),
        ("hf_token=hf_abcdefghijklmnopqrstuvwx", "looks like a secret"),
        ("api_key=1", "looks like a secret"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(real, text, words):
    with pytest.raises(UsageError) as error:
        parse_parameters(text, real)
    assert words in str(error.value) and "hf_abc" not in str(error.value)


def test_right_parameters_get_their_types(real):
    assert parse_parameters("max_steps=5 learning_rate=1e-4 seed=1", real) == {
        "max_steps": 5,
        "learning_rate": 1e-4,
        "seed": 1,
    }


def test_notebooks_are_found_by_number_and_name(real):
    assert [p.stem[:2] for p in real] == sorted(p.stem[:2] for p in real) and len(real) >= 6
    assert [p.stem for p in find_notebooks("02 00_setup_check")] == ["00_setup_check", "02_lora_train"]
    with pytest.raises(UsageError, match="did you mean '02_lora_train'"):
        find_notebooks("lora_train")


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--profile", "smal"], "did you mean 'small'"), (["--params", "x=1"], "no notebook")]
)
def test_usage_errors_are_one_line_and_exit_2(arguments, words):
    done = subprocess.run(
        [sys.executable, "-m", "helpers.runner", *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_parameters_reach_the_notebook_and_passing_is_remembered(book, tmp_path):
    write_notebook(book, "00_first", "print(profile, seed, max_steps, learning_rate)")
    write_notebook(book, "01_second", "print(runs_dir)")
    end, status, lines = run(tmp_path, parameters={"seed": 7, "learning_rate": 1e-4})
    assert end == "ok" and [s["status"] for s in status.values()] == ["ok", "ok"]
    executed = nbformat.read(tmp_path / "out/tiny/notebooks/00_first.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "tiny 7 None 0.0001\n"
    assert any("cell 1 of 3" in line for line in lines)
    page = (tmp_path / "out/tiny/index.html").read_text()
    assert "passed" in page and 'href="notebooks/00_first.html"' in page

    again = run(tmp_path, parameters={"seed": 7, "learning_rate": 1e-4})[2]
    assert sum("passed before" in line for line in again) == 2
    write_notebook(book, "00_first", "print('changed')")
    assert [
        line for line in run(tmp_path, parameters={"seed": 7, "learning_rate": 1e-4})[2] if "passed before" in line
    ] == []


def test_an_error_stops_the_series_and_shows_on_the_page(book, tmp_path):
    write_notebook(
        book, "00_bad", "secret = 'hf_' + 'a' * 24\nprint(secret)", "raise ValueError('the reason ' + secret)"
    )
    write_notebook(book, "01_never", "1")
    end, status, lines = run(tmp_path)
    assert end == "failed" and list(status) == ["00_bad"]
    assert status["00_bad"]["cell"] == 4 and "ValueError: the reason" in status["00_bad"]["why"]
    page = (tmp_path / "out/tiny/index.html").read_text()
    assert "the reason" in page
    for file in (tmp_path / "out/tiny").rglob("*.*"):
        assert "hf_aaaa" not in file.read_text(errors="replace"), file


def test_exit_0_in_a_cell_is_not_success(book, tmp_path):
    write_notebook(book, "00_exit", "import sys; sys.exit(0)", "print('never')")
    end, status, _ = run(tmp_path)
    assert end in ("failed", "killed") and EXIT[end] != 0


def test_a_killed_kernel_is_told_apart_and_its_children_are_gone(book, tmp_path):
    pid_file = tmp_path / "pid"
    write_notebook(
        book, "00_killed",
        f"import os, subprocess, sys\nchild = subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        f"open({str(pid_file)!r}, 'w').write(str(child.pid))\nos.kill(os.getpid(), 9)",
    )  # fmt: skip
    end, status, _ = run(tmp_path)
    assert end == "killed" and EXIT[end] == 137
    assert not _alive(int(pid_file.read_text()))


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_limits_for_a_cell_and_for_a_notebook(book, tmp_path):
    write_notebook(book, "00_slow", "import time; time.sleep(120)")
    end, status, _ = run(tmp_path, cell_timeout=4)
    assert end == "timed out" and "a cell ran longer than 4 s" in status["00_slow"]["why"]
    end, status, _ = run(tmp_path, notebook_timeout=4)
    assert end == "timed out" and "the notebook ran longer than 4 s" in status["00_slow"]["why"] and EXIT[end] == 124


def test_a_promised_record_must_exist_and_be_new(book, tmp_path):
    write_notebook(book, "00_promise", "print('nothing saved')", records=["lora"])
    end, status, _ = run(tmp_path)
    assert end == "failed" and "it wrote no" in status["00_promise"]["why"]
    old = RunRecord(method="lora", profile="tiny", seed=0, finished="2020-01-01T00:00:00Z")
    old.save(tmp_path / "out/tiny/lora-s0")
    assert run(tmp_path)[0] == "failed"


def test_a_second_run_in_the_same_folder_is_refused(book, tmp_path):
    write_notebook(book, "00_slow", "import time; time.sleep(6)")
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir(parents=True); "
         "f = open(p / '.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)",
         str(tmp_path / "out/tiny")], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline().strip() == "held"
        with pytest.raises(UsageError, match="another run is using"):
            run(tmp_path)
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_and_goes_on_later(tmp_path, number):
    """The real command, stopped while a notebook runs; then again to the end, with what had passed not run twice."""
    command = [
        sys.executable,
        "-m",
        "helpers.runner",
        "--profile",
        "tiny",
        "--notebooks",
        "04 00",
        "--runs-dir",
        str(tmp_path),
    ]
    status_file = tmp_path / "tiny/status.json"
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    for line in process.stdout:
        if "cell" in line:
            break
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    stopped = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert time.monotonic() - stopped < 20  # ten seconds are promised; this machine may be busy
    assert process.returncode == EXIT["interrupted"]
    assert not [c for c in children if _alive(c.pid)]
    assert json.loads(status_file.read_text())["notebooks"]["00_setup_check"]["status"] == "interrupted"


def test_secrets_are_masked():
    assert mask_secrets("token hf_abcdefghijklmnop1234 end") == "token *** end"
    assert mask_secrets("half of it") == "half of it"


def test_parameters_cell_is_read_without_running_it(book):
    write_notebook(book, "00_any", "1")
    assert parameters_of(book / "00_any.ipynb")["runs_dir"] == "runs"
