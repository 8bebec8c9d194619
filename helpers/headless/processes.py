"""The processes of a headless run: a lock for its folder, a child for each notebook, and an end for all of them."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from helpers.headless.parameters import UsageError
from helpers.settings import shown

import psutil

FOLDER, RUNNER = "FINE_TUNING_RUN", "FINE_TUNING_RUNNER"  # in the environment of everything that a run starts
KILLED = "was killed, most often because main memory ran out: close other programs, or choose a smaller profile"
_PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs, for as long as this process lives.

    The lock is on the directory, and on the name of a socket made from its path. No file holds it, so deleting the folder
    does not end it, and there is no link to follow.

    Raises:
        UsageError: if another run holds it, or the folder cannot be used.
    """
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UsageError(f"{shown(folder)} cannot be written ({error.strerror}): choose another RUNS_DIR") from None
        held.callback(os.close, directory)
        name = held.enter_context(socket.socket(socket.AF_UNIX))
        try:
            name.bind(_address(folder))
            name.listen(1000)
            with suppress(PermissionError):  # some network file systems lock no directories
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)  # seen from other containers, too
        except OSError:
            who = f"another run is using {shown(folder)} (process {_holder(folder) or 'unknown'})"
            raise UsageError(f"{who}: wait for it, or choose another RUNS_DIR") from None
        yield


def in_use(folder: Path) -> list[Path]:
    """The folders at this path and up to two levels below it that a run holds at the moment."""
    below = [folder, *folder.glob("*"), *folder.glob("*/*")]
    return [path for path in below if path.is_dir() and _holder(path)]


def _address(folder: Path) -> str:
    return "\0fine-tuning-" + hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]


def _holder(folder: Path) -> str | None:
    """The number of the process that holds a folder, "unknown" if it does not answer, None if there is none."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.setblocking(False)
        try:
            peer.connect(_address(folder))
            return str(struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
        except BlockingIOError:
            return "unknown"
        except ConnectionRefusedError:
            return None


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
