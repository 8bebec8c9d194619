"""One run at a time in a folder: the lock that the runner and a training hold."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from helpers.settings import shown

import psutil

OTHER = "RUNS_DIR (in a notebook: runs_dir)"


@contextmanager
def locked(folder: Path, error: type[Exception]) -> Iterator[None]:
    """Hold a folder against other runs, for as long as this process lives.

    The lock is on the directory, and on the name of a socket made from its path. No file holds it, so deleting the folder
    does not end it, and there is no link to follow. If another run holds the folder, or it cannot be used, ``error`` is
    raised.
    """
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as fault:
            raise error(f"{shown(folder)} cannot be written ({fault.strerror}): choose another {OTHER}") from None
        held.callback(os.close, directory)
        try:
            held.enter_context(socket.socket(socket.AF_UNIX)).bind(f"\0{_name(folder)}")
            with suppress(PermissionError):  # some network file systems lock no directories
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)  # seen from other containers, too
        except OSError:
            who = f"another run is using {shown(folder)} (process {_holders().get(_name(folder)) or 'unknown'})"
            raise error(f"{who}: wait for it, or choose another {OTHER}") from None
        yield


def in_use(folder: Path) -> list[Path]:
    """The folders at this path and up to two levels below it that a run holds at the moment."""
    below, holders = [folder, *folder.glob("*"), *folder.glob("*/*")], _holders()
    return [path for path in below if path.is_dir() and _name(path) in holders]


def _name(folder: Path) -> str:
    return "fine-tuning-" + hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]


def _holders() -> dict[str, int | None]:
    """The numbers of the processes that hold a folder, by its name; None for those of other users."""
    return {each.laddr.removeprefix("@"): each.pid for each in psutil.net_connections("unix") if each.laddr}
