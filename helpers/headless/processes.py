"""The processes of a headless run: a lock for its folder, a child for each notebook, and an end for all of them."""

from __future__ import annotations

import fcntl
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from helpers.headless.parameters import UsageError
from helpers.settings import shown

import psutil

MARK = "FINE_TUNING_RUN"  # in the environment of everything that a notebook starts: the folder of the run


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the output folder against other runs; the lock ends with the process.

    Raises:
        UsageError: if another run holds it, or the folder cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise UsageError(f"{shown(folder)} cannot be written ({error.strerror}): choose another RUNS_DIR") from None
    with open(folder / ".lock", "r+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = handle.read().strip() or "unknown"
            raise UsageError(
                f"another run is using {shown(folder)} (process {holder}): wait for it, or choose another RUNS_DIR"
            ) from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


@contextmanager
def executing(job: dict, mark: str) -> Iterator[queue.SimpleQueue]:
    """Run one notebook in a process group of its own, by :mod:`helpers.headless.execute`, and leave no process behind.

    Yields:
        What the child reports, one dictionary for each line; after its end, one with ``end``.
    """
    read, write = os.pipe()  # a pipe of its own: a kernel and its children inherit standard output, and outlive it
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "helpers.headless.execute", str(write)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=errors, pass_fds=[write], start_new_session=True, text=True, env=os.environ | {MARK: mark},
        )  # fmt: skip
        os.close(write)
        reports: queue.SimpleQueue = queue.SimpleQueue()

        def receive() -> None:
            with open(read, encoding="utf-8") as lines:
                for line in lines:
                    reports.put(json.loads(line))
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            reports.put({"end": "killed", "why": f"the process that ran the notebook ended early: {last}"})

        receiver = threading.Thread(target=receive, daemon=True)
        receiver.start()
        try:
            with suppress(BrokenPipeError):  # where the child cannot even start, its last words follow
                child.stdin.write(json.dumps(job) + "\n")
                child.stdin.flush()  # and stays open: its end would mean that the runner died
            yield reports
        finally:
            end_marked(mark)
            with suppress(subprocess.TimeoutExpired):  # a process that hangs in a driver cannot be ended
                child.wait(timeout=5)
            with suppress(BrokenPipeError):
                child.stdin.close()
            receiver.join(timeout=10)


def end_marked(mark: str, patience: float = 3) -> None:
    """End all processes that a run started, also those in other sessions; kill what is left after ``patience`` s."""
    processes = _marked(mark)
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(processes, timeout=patience)
    processes = _marked(mark)
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=patience)


def _marked(mark: str) -> list[psutil.Process]:
    """The processes with the mark, and their descendants (some programs overwrite their environment), but not this."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]
