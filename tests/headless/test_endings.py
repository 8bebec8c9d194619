"""However a notebook ends, the status says how, why and where; nothing stays running, and nothing that passed is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

from helpers.headless.__main__ import EXIT
from helpers.headless.execute import reason
from helpers.headless.processes import ending
from helpers.records import RunRecord
from helpers.settings import ROOT

import nbformat
import psutil
import pytest

CHILD = (  # in a session of its own, started by a cell that ignores Ctrl-C
    "import os, signal, subprocess, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "child = subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
    "open('pids', 'w').write(f'{child.pid} {os.getpid()}')\n"
)
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # also in the child: only SIGKILL ends them
DAEMON = (  # without an environment, parent or terminal; one of them starts others all the time
    "import os, subprocess, time\n"
    "for name, work in (('daemon', 'exec sleep 301'), ('loop', 'while :; do sleep 1; done')):\n"
    "    subprocess.run(['env', '-i', 'setsid', '-f', 'sh', '-c', f'echo $$ > {name}; {work}'], check=True)\n"
    "while not (os.path.exists('daemon') and os.path.exists('loop')):\n    time.sleep(0.1)\n"
)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids(book, *names: str) -> list[int]:
    """The process numbers that cells wrote down, once they did; by default those of CHILD: its own and the kernel's."""
    numbers, deadline = [], time.monotonic() + 60
    for file in [book.folder / name for name in names or ["pids"]]:
        while not (file.is_file() and file.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        numbers += map(int, file.read_text().split())
    return numbers


def test_a_killed_kernel_is_noticed_and_its_children_end(book):
    warning = "import sys\nprint('a warning of a library', file=sys.__stderr__, flush=True)\n"
    words = "print('the last words', flush=True)\ntime.sleep(1)\nos.kill(os.getpid(), 9)"
    book.write("00_killed", CHILD + warning + words, "1")
    assert book.run() == "killed" and EXIT["killed"] == 137
    entry = book.entry("00_killed")
    assert entry["status"] == "killed" and entry["cell"] == 3
    assert entry["why"].startswith("the kernel was killed, most often because main memory ran out: close other")
    assert "the last words" in entry["last_lines"] and "the last words" in book.page()
    assert book.lines[-2].startswith("00_killed  killed in cell 3 of 4 after ")
    assert not [pid for pid in pids(book) if alive(pid)]


@pytest.mark.parametrize(
    ("cell", "end", "why"),
    [
        ("import os; os._exit(3)", "killed", "the kernel ended itself with exit code 3"),
        ("import sys; sys.exit(0)", "failed", "SystemExit: 0, and the cells after it never ran"),
        ("get_ipython().showtraceback = lambda *a, **k: None\n1 / 0", "failed", "ZeroDivisionError: division by zero, and"),
        ("raise OSError(28, 'No space left on device')", "failed", "OSError: [Errno 28] No space left on device; free some space"),
        ("import helpers.records as r\nr.load('/nowhere/record.json')", "failed", "RecordError: there is no finished run in nowhere"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failure_is_named(book, cell, end, why):
    book.write("00_any", cell, "print('never')")
    assert book.run() == end
    assert book.entry("00_any")["why"].startswith(why) and book.entry("00_any")["cell"] == 3
    assert "RecordError" not in why or book.entry("00_any")["last_lines"].count("\n") == 0, "a sentence, no traceback"


@pytest.mark.parametrize(
    ("last", "then"),
    [
        ("os._exit(3)", "the kernel ended itself with exit code 3"),
        ("os.kill(os.getpid(), 9)", "the kernel was killed, most often"),
        ("os.abort()", "the kernel was ended by SIGABRT"),
    ],
)
def test_an_error_is_named_also_where_the_kernel_dies_of_it(book, last, then):
    hook = f"import os, time\nget_ipython().events.register('post_run_cell', lambda result: (time.sleep(1), {last}))\n"
    book.write("00_both", hook + "raise MemoryError('no room for the weights')", "print('never')")
    assert book.run() == "failed"
    why = book.entry("00_both")["why"]
    assert why.startswith(f"MemoryError: no room for the weights; then {then}"), why


@pytest.mark.parametrize(
    ("name", "text", "code", "why"),
    [
        ("AssertionError", "", "assert 1 > 2", "AssertionError: at `assert 1 > 2`"),
        ("KeyError", " ", "raise KeyError", "KeyError: at `raise KeyError`"),
        ("Odd", "", None, "Odd: without a message"),
        ("Long", "x" * 5000, None, "Long: xxx"),
    ],
)
def test_a_reason_is_never_empty_nor_endless(name, text, code, why):
    traceback = (
        f"\x1b[31m{name}\x1b[39m\nCell In[1]\n\x1b[32m----> 1\x1b[39m \x1b[38;5;28m{code}\x1b[39m\n" if code else ""
    )
    assert reason(name, text, traceback).startswith(why) and len(reason(name, text, traceback)) <= 2000


def test_the_end_of_a_kernel_is_told_from_its_exit_code():
    assert ending(-11).startswith("was ended by SIGSEGV: if nobody sent it, compiled code crashed")
    assert ending(0) == "ended itself with exit code 0"
    assert ending(-9) == ending(None) and "main memory ran out" in ending(-9)


@pytest.mark.parametrize("variable", ["FINE_TUNING_RUN", "MODELS_DIR", "HF_HOME"])
def test_a_disk_that_is_full_is_named(monkeypatch, tmp_path, variable):
    monkeypatch.setenv("FINE_TUNING_RUN", str(tmp_path.parent))
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda place: mock.Mock(free=0 if place == tmp_path else 10**12))
    why = reason("SafetensorError", "I/O error: No space left on device (os error 28)", "")
    assert why.endswith(f"(os error 28); free some space in {tmp_path}")
    monkeypatch.setattr("shutil.disk_usage", lambda place: mock.Mock(free=10**12))
    assert "free some space in the place that it names, or in /" in reason("OSError", "No space left on device", "")


def test_a_process_killed_by_the_system_is_not_explained_by_a_warning(book):
    kill = "psutil.Process().parent().kill()\ntime.sleep(60)"
    book.write("00_any", f"import psutil, sys, time\nprint('a warning', file=sys.__stderr__)\n{kill}")
    assert book.run() == "killed"
    assert book.entry("00_any")["why"].startswith(
        "the process that ran the notebook was killed, most often because main"
    )


def test_a_broken_environment_is_named(book, monkeypatch, tmp_path):
    book.write("00_any", "1")
    (tmp_path / "nbclient.py").write_text("raise ImportError('half of nbclient is missing')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert book.run() == "killed"
    assert book.entry("00_any")["why"].endswith("ended early: ImportError: half of nbclient is missing")
    assert not (book.out / "notebooks").exists()


def test_a_notebook_over_its_limit_keeps_what_it_printed(book):
    book.write("00_slow", "1", "import time\nfor i in range(600):\n    print('at', i, flush=True)\n    time.sleep(0.1)")
    assert book.run(notebook_timeout=15) == "timed out" and EXIT["timed out"] == 124
    entry = book.entry("00_slow")
    assert entry["why"] == "the notebook ran longer than 15 s (--notebook-timeout)" and entry["cell"] == 4
    assert "at 0" in (book.out / "notebooks/00_slow.ipynb").read_text() and entry["page"]


def test_a_cell_that_ignores_signals_is_ended(book):
    book.write("00_deaf", DEAF + CHILD + "time.sleep(300)")
    assert book.run(cell_timeout=2) == "timed out"
    entry = book.entry("00_deaf")
    assert entry["why"] == "the cell ran longer than 2 s (--cell-timeout)" and entry["cell"] == 3
    assert not [pid for pid in pids(book) if alive(pid)]


@pytest.mark.parametrize("end", ["ok", "timed out", "killed"])
def test_a_daemon_without_an_environment_ends_with_its_notebook(book, end):
    book.write("00_any", DAEMON + ("" if end == "ok" else "time.sleep(300)"))
    if end == "killed":
        runner = book.start()
        daemons = pids(book, "daemon", "loop")
        runner.kill()  # so that nobody is left to call what it started
        runner.wait()
        psutil.wait_procs([psutil.Process(pid) for pid in daemons if psutil.pid_exists(pid)], timeout=20)
    else:
        assert book.run(cell_timeout=4) == end
        daemons = pids(book, "daemon", "loop")
    assert not [pid for pid in daemons if alive(pid)]


def test_a_cancelled_run_goes_on_where_it_stopped(book):
    """The command line, stopped three times in its second notebook; then to the end. The first runs only once."""
    book.write("00_first", "1")
    hold = book.folder / "hold"
    hold.touch()
    book.write("01_second", CHILD + f"while os.path.exists({str(hold)!r}):\n    time.sleep(0.1)")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        runner = book.start()
        processes = pids(book)
        runner.send_signal(number)
        written = runner.communicate(timeout=60)[0]
        assert ("00_first  passed before" in written) == (number != signal.SIGINT)
        if number == signal.SIGKILL:  # what it started notices that the runner is gone
            psutil.wait_procs([psutil.Process(pid) for pid in processes if psutil.pid_exists(pid)], timeout=20)
            assert book.entry("01_second")["status"] == "running"
        else:
            assert runner.returncode == EXIT["interrupted"] == 130
            entry = book.entry("01_second")
            assert entry["status"] == "interrupted" and entry["cell"] == 3 and entry["page"]
            assert f"stopped by {number.name}; the same command goes on from here" in written
        assert not [pid for pid in processes if alive(pid)]
        (book.folder / "pids").unlink()

    hold.unlink()
    assert book.run() == "ok"
    assert "00_first  passed before, nothing changed" in book.lines and "01_second  running" in book.lines


def test_limits_and_signals_hold_while_a_page_is_made(book):
    """A text that the parser of Markdown takes very long for, as a cell of the notebook."""
    path = book.write("00_any", "1")
    content = nbformat.read(path, 4)
    content.cells.append(nbformat.v4.new_markdown_cell("[" * 200_000))
    nbformat.write(content, path)
    assert book.run(notebook_timeout=15) == "timed out"
    assert book.entry("00_any")["why"].startswith("the notebook ran longer than 15 s") and not book.entry("00_any").get(
        "page"
    )
    runner = book.start()
    deadline = time.monotonic() + 60
    while not (book.out / "notebooks/00_any.story.html").stat().st_mtime > time.time() - 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    runner.send_signal(signal.SIGTERM)
    runner.communicate(timeout=30)
    assert runner.returncode == 130 and book.entry("00_any")["status"] == "interrupted"


@pytest.mark.parametrize("limit", [100_000, 10])
def test_a_full_disk_leaves_the_former_files_whole(book, limit):
    book.write("00_large", "print('x' * 10)")
    assert book.run() == "ok"
    former = {f: f.read_bytes() for f in (book.out / "notebooks").iterdir()}
    book.write("00_large", "print('x' * 300_000)")
    runner = book.start(before=f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))")
    out, errors = runner.communicate(timeout=60)
    if limit == 10:  # not even the status can be written
        assert runner.returncode == 2 and errors.startswith("error: ") and "File too large" in errors
    else:
        assert runner.returncode == EXIT["failed"] and not errors and book.entry("00_large")["status"] == "failed"
        assert f"{book.out / 'notebooks/00_large.ipynb'} could not be written: File too large; free some space" in out
    assert {f: f.read_bytes() for f in (book.out / "notebooks").iterdir()} == former
    assert json.loads((book.out / "status.json").read_text())["notebooks"]


@pytest.mark.parametrize("reader", ["one line", "full", "closed", "ascii"])
def test_the_state_is_right_whatever_happens_to_the_terminal(book, reader):
    path = book.write("00_any", "print('ä')")
    content = nbformat.read(path, 4)
    content.cells[1].source = "## Schlüssel ü \u200b"
    nbformat.write(content, path)
    command = [sys.executable, "-c", book.code(), "--profile", "tiny", "--runs-dir", str(book.out.parent)]
    environment = os.environ | ({"PYTHONIOENCODING": "ascii", "LC_ALL": "C"} if reader == "ascii" else {})
    shell = {
        "one line": '"$@" | head -1', "full": '"$@" > /dev/full', "closed": '"$@" >&-', "ascii": '"$@"',
    }[reader]  # fmt: skip
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell, "bash", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert book.entry("00_any")["status"] == "ok" and "passed" in book.page()
    assert done.returncode == 0 and not done.stderr, done.stderr
    if reader == "ascii":
        assert "Schl\\xfcssel" in done.stdout


def test_a_promised_record_must_exist_and_be_new(book):
    book.write("00_promise", "print('nothing saved')", records=["lora"])
    RunRecord("lora", "tiny", 0, finished="2999-01-01T00:00:00Z").save(book.out / "lora-s0")
    assert book.run() == "failed", "by a clock that was ahead when it was written, it would be new"
    assert book.entry("00_promise")["why"] == f"every cell ran, but it wrote no {book.out / 'lora-s0/record.json'}"
