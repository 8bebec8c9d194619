"""The processes of a headless run: a child for each notebook, and an end for all of them."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from helpers.engine.locks import locked as hold
from helpers.headless.parameters import UsageError

import psutil

FOLDER, RUNNER = "FINE_TUNING_RUN", "FINE_TUNING_RUNNER"  # in the environment of everything that a run starts
KILLED = "was killed, most often because main memory ran out: close other programs, or choose a smaller profile"
_PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, see :func:`helpers.engine.locks.locked`.

    Raises:
        UsageError: if another run holds it, or the folder cannot be used.
    """
    with hold(folder, UsageError):
        yield


@contextmanager
def executing(job: dict, folder: Path) -> Iterator[tuple[subprocess.Popen, queue.SimpleQueue]]:
    """Hand a job to a process of :mod:`helpers.headless.execute`, and leave none of its processes behind.

    Yields:
        The process, and what it reports: one dictionary for each line; after its end, one with ``end``.
    """
    read, write = os.pipe()  # a pipe of its own: a kernel and its children inherit standard output, and outlive it
    runner, reports = _identity(psutil.Process()), queue.SimpleQueue()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "helpers.headless.execute", str(write)], stdin=subprocess.PIPE, text=True,
            stdout=subprocess.DEVNULL, stderr=errors, pass_fds=[write], start_new_session=True,
            env=os.environ | {FOLDER: str(folder), RUNNER: runner},
        )  # fmt: skip
        os.close(write)

        def receive() -> None:
            with open(read, encoding="utf-8") as lines:
                for line in lines:
                    reports.put(json.loads(line))
            reports.put({"end": "killed", "why": f"the process that ran the notebook {_cause(child, errors)}"})

        receiver = threading.Thread(target=receive, daemon=True)
        receiver.start()
        try:
            with suppress(BrokenPipeError):  # where the child cannot even start, its last words follow
                child.stdin.write(json.dumps(job) + "\n")
                child.stdin.flush()  # and stays open: its end would mean that the runner died
            yield child, reports
        finally:
            started = _descendants(child.pid)
            with suppress(BrokenPipeError):
                child.stdin.close()  # which tells it to end, with all that it started
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=8)
            end_processes([*started, *of_run(folder, runner)])
            receiver.join(timeout=10)


def _cause(child: subprocess.Popen, errors) -> str:
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=5)
    if (child.returncode or 0) < 0:
        number = signal.Signals(-child.returncode)
        return KILLED if number == signal.SIGKILL else f"was ended by {number.name}"
    errors.seek(max(0, os.fstat(errors.fileno()).st_size - 10_000))
    return f"ended early: {(errors.read().strip().splitlines() or ['it wrote no error'])[-1]}"


def _identity(process: psutil.Process) -> str:
    return f"{process.pid} {process.create_time():.2f}"


def of_run(folder: Path, runner: str | None = None) -> list[psutil.Process]:
    """The processes that a run over this folder started, by their environment, with their descendants.

    Args:
        runner: whose they are; None for those whose runner has died.
    """
    marked = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            variables = process.environ()
            parent = variables.get(RUNNER, "")
            if variables.get(FOLDER) == str(folder) and (parent == runner if runner else parent and not _alive(parent)):
                marked += [process, *_descendants(process.pid)]  # some programs overwrite their environment
    here = psutil.Process()
    return [process for process in marked if process not in (here, *here.parents())]


def _alive(identity: str) -> bool:
    with suppress(psutil.Error, ValueError):
        process = psutil.Process(int(identity.split()[0]))
        return _identity(process) == identity and process.status() != psutil.STATUS_ZOMBIE
    return False


def end_processes(processes: list[psutil.Process], patience: float = 3) -> None:
    """Ask processes to end, and kill those that are left after ``patience`` seconds."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.Error):
                end(process)
        processes = psutil.wait_procs(processes, timeout=patience)[1]


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends, daemons included."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_descendants(seconds: float = 6) -> None:
    """End all that this process started or adopted, also what starts anew meanwhile; give up after some seconds."""
    until = time.monotonic() + seconds
    while (processes := _descendants(os.getpid())) and time.monotonic() < until:
        end_processes(processes, patience=2)


def _descendants(number: int) -> list[psutil.Process]:
    """The living processes below a process."""
    living = []
    with suppress(psutil.Error):
        for process in psutil.Process(number).children(recursive=True):
            with suppress(psutil.Error):
                living += [process] * (process.status() != psutil.STATUS_ZOMBIE)
    return living
