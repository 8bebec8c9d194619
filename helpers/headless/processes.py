"""The processes of a headless run: a child for each notebook, and an end for all of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

FOLDER = "FINE_TUNING_RUN"  # the folder of the run, in the environment of everything that the run starts


@contextmanager
def executing(job: dict, folder: Path) -> Iterator[tuple[subprocess.Popen, Callable[[float], dict | None]]]:
    """Hand a job to a process of :mod:`helpers.headless.execute`, and leave none of its processes behind.

    Yields:
        The process, and a function that waits some seconds for its next report: a dictionary, which holds ``end`` once
        the process has ended, or None if there was no report.
    """
    ours, its = multiprocessing.Pipe()  # of its own: a kernel and its children inherit standard output, and outlive it
    ours.send(job)
    with ours, tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "helpers.headless.execute", str(its.fileno())], pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            env=os.environ | {FOLDER: str(folder)},
        )  # fmt: skip
        its.close()

        def report(seconds: float) -> dict | None:
            try:
                return ours.recv() if ours.poll(seconds) else None
            except (EOFError, OSError):
                return {"end": "killed", "why": f"the process that ran the notebook {_cause(child, errors)}"}

        try:
            yield child, report
        finally:
            started = descendants(child.pid)
            ours.close()  # which tells it to end, with all that it started
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=8)
            end_processes([*started, *of_run(folder)])


def _cause(child: subprocess.Popen, errors) -> str:
    with suppress(subprocess.TimeoutExpired):
        child.wait(timeout=5)
    if (child.returncode or 0) < 0:
        return ending(child.returncode)
    errors.seek(max(0, os.fstat(errors.fileno()).st_size - 10_000))
    return f"ended early: {(errors.read().strip().splitlines() or ['it wrote no error'])[-1]}"


def ending(code: int | None) -> str:
    """What the exit code of a process says, None if it is not known."""
    if code is None or code == -signal.SIGKILL:
        return "was killed, most often because main memory ran out: close other programs, or choose a smaller profile"
    if code < 0:
        name = signal.Signals(-code).name
        return f"was ended by {name}: if nobody sent it, compiled code crashed, such as that of a library or a driver"
    return f"ended itself with exit code {code}"


def of_run(folder: Path) -> list[psutil.Process]:
    """The processes that runs over this folder started, except this one and those that it is itself part of.

    Ask only while you hold the lock of the folder, so that no other run is using them.
    """
    here, marked = psutil.Process(), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(FOLDER) == str(folder):
                marked += [process, *descendants(process.pid)]  # some programs overwrite their environment
    return [process for process in marked if process not in (here, *here.parents())]


def descendants(number: int) -> list[psutil.Process]:
    """The living processes below a process."""
    living = []
    with suppress(psutil.Error):
        for process in psutil.Process(number).children(recursive=True):
            with suppress(psutil.Error):
                living += [process] * (process.status() != psutil.STATUS_ZOMBIE)
    return living


def end_processes(processes: list[psutil.Process], patience: float = 3) -> None:
    """Ask processes to end, and kill those that are left after ``patience`` seconds."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in processes:
            with suppress(psutil.Error):
                end(process)
        processes = psutil.wait_procs(processes, timeout=patience)[1]
