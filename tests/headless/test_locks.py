"""One run at a time in a folder, whatever happens to the folder; and no process ends that is not provably of a run that is over."""

import os
import re
import subprocess
import sys
import time

from helpers.engine.locks import in_use, locked
from helpers.headless import UsageError
from helpers.headless.__main__ import main
from helpers.headless.processes import FOLDER, end_processes, of_run
from helpers.settings import ROOT

import psutil
import pytest


def test_two_runs_into_one_folder(book):
    book.write("00_any", "1")
    with locked(book.out, UsageError):
        runner = book.start()
        out, errors = runner.communicate(timeout=60)
        assert runner.returncode == 2 and not out
        assert errors == (
            f"error: another run is using {book.out} (process {os.getpid()}): wait for it, or choose another "
            "RUNS_DIR (in a notebook: runs_dir)\n"
        )
    with locked(book.out, UsageError):
        assert list(book.out.iterdir()) == [], "the lock ends with its holder, and leaves no file"


@pytest.mark.parametrize("what", ["deleted", "deleted and made again", "moved away", "another name for it"])
def test_a_lock_outlives_its_folder(tmp_path, what):
    folder = tmp_path / "runs/tiny"
    with locked(folder, UsageError):
        if what == "another name for it":
            (tmp_path / "link").symlink_to(tmp_path / "runs")
            folder = tmp_path / "link/tiny"
        elif what == "moved away":
            folder.rename(tmp_path / "old")
        else:
            folder.rmdir()
            if what == "deleted and made again":
                folder.mkdir()
        with (
            pytest.raises(UsageError, match=f"another run is using .*process {os.getpid()}"),
            locked(folder, UsageError),
        ):
            pass
    with locked(folder, UsageError):
        pass


def test_a_lock_follows_no_link_and_writes_no_file(tmp_path):
    folder, private = tmp_path / "runs", tmp_path / "private"
    folder.mkdir()
    private.write_text("private")
    for name in (".lock", "status.json", ".status.json.tmp"):
        (folder / name).symlink_to(private)
    with locked(folder, UsageError):
        assert private.read_text() == "private"
    with pytest.raises(UsageError, match="cannot be written"), locked(private, UsageError):
        pass


def test_a_lock_ends_with_a_killed_process(tmp_path):
    hold = f"import pathlib, time\nfrom helpers.engine.locks import locked\nwith locked(pathlib.Path({str(tmp_path)!r}), OSError):\n    print(flush=True)\n    time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", hold], cwd=ROOT, stdout=subprocess.PIPE)
    holder.stdout.readline()
    with pytest.raises(UsageError, match=f"process {holder.pid}"), locked(tmp_path, UsageError):
        pass
    assert in_use(tmp_path)
    holder.kill()
    holder.wait()
    with locked(tmp_path, UsageError):
        pass


def test_clean_can_ask_whether_a_run_is_on(tmp_path, capsys):
    (tmp_path / "runs/tiny/lora-s0").mkdir(parents=True)
    assert main(["--in-use", str(tmp_path / "runs")]) == 0 == main(["--in-use", str(tmp_path / "nowhere")])
    for held in ("runs", "runs/tiny", "runs/tiny/lora-s0"):
        with locked(tmp_path / held, UsageError):
            assert main(["--in-use", str(tmp_path / "runs")]) == 2
        assert re.fullmatch(
            rf"error: a run is using {tmp_path}/{held}: wait for it, or stop it\n", capsys.readouterr().err
        )


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def sleeper():
    """Starts processes with some environment, and ends them."""
    started = []

    def start(**variables: str) -> int:
        process = subprocess.Popen(["sleep", "100"], env=os.environ | variables, start_new_session=True)
        started.append(process)
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_only_what_a_former_run_left_in_this_folder_is_ended(tmp_path, sleeper):
    left = {sleeper(**{FOLDER: str(tmp_path)}) for _ in range(2)}
    others = [sleeper(**{FOLDER: str(tmp_path / "other")}), sleeper(**{FOLDER: ""}), sleeper()]
    time.sleep(0.5)  # until each has its own environment
    with locked(tmp_path, UsageError):
        assert {process.pid for process in of_run(tmp_path)} == left
        end_processes(of_run(tmp_path))
    assert not [pid for pid in left if alive(pid)] and all(map(alive, others))


def test_a_run_never_ends_the_process_that_started_it(tmp_path):
    """A runner inside of what a dead run left, such as a terminal of that run."""
    ask = "import os, pathlib\nfrom helpers.headless.processes import of_run\nprint(len(of_run(pathlib.Path(os.environ['FINE_TUNING_RUN']))))"
    marked = os.environ | {FOLDER: str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", '"$@"; true', "sh", sys.executable, "-c", ask], env=marked, capture_output=True, text=True
    )
    assert done.stdout == "0\n", done.stderr


def test_a_second_run_waits_for_no_folder_that_was_cleaned(book):
    """`rm -rf runs` during a run, then another run: it is refused, and the first ends as it should."""
    hold = book.folder / "hold"
    hold.touch()
    book.write("00_any", f"import os, time\nopen('begun', 'w')\nwhile os.path.exists({str(hold)!r}): time.sleep(0.1)")
    first = book.start()
    while not (book.folder / "begun").is_file():
        assert first.poll() is None
        time.sleep(0.1)
    subprocess.run(["rm", "-rf", book.out.parent], check=True)
    second = book.start()
    assert second.communicate(timeout=60)[1].startswith(f"error: another run is using {book.out} (process {first.pid})")
    hold.unlink()
    assert "00_any  passed in" in first.communicate(timeout=60)[0] and first.returncode == 0
    assert book.entry("00_any")["status"] == "ok"
