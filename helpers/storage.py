"""Files that are there whole or not at all, and JSON of a known shape. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

MAX_JSON_BYTES, MAX_JSON_DEPTH = 64_000_000, 50
COPIES = ".ipynb_checkpoints"  # where JupyterLab puts a copy of each file that is opened in it
# what a record may hold null for, or lack
_NOT_MEASURED = (
    "evaluation",
    "exact_match",
    "harder",
    "families",
    "prose",
    "general",
    "unrelated",
    "manifest",
    "energy",
    "losses",
    "baselines",
)


class RecordError(ValueError):
    """A record that is missing, damaged, of another version or incomplete; the message names the file."""


def _write(path: Path, temporary: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    with open(temporary, "x", encoding="utf-8", errors="backslashreplace") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is there whole or not at all; links in its place are replaced, never followed.

    Raises:
        RecordError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            _write(path, temporary, text)
        except FileNotFoundError:  # somebody deleted the folder meanwhile
            _write(path, temporary, text)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        remedy = "free some space or choose another folder"
        raise RecordError(f"{path} could not be written: {error.strerror}; {remedy}") from None


def read_json(path: Path, error: Callable[[str], Exception], keys: dict[str, type] | None = None) -> dict:
    """Read a JSON file that holds one object, as every file of this project does.

    Args:
        path: the file.
        error: the caller's own exception, or a function that makes one from a sentence about the file.
        keys: names that must be there, with the type of each value.

    Raises:
        FileNotFoundError: if there is no file.
        Exception: the one that ``error`` makes, for a file that cannot be read or has another shape.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_JSON_BYTES:  # reading a pipe would wait for ever
            raise error(f"{path} cannot be read: it is not a regular file of at most {MAX_JSON_BYTES // 1_000_000} MB")
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}") from None
    return parse_json(content, str(path), error, keys)


def parse_json(content: bytes | str, name: str, error: Callable[[str], Exception], keys: dict | None = None) -> dict:
    """The same for a JSON text that is in memory already; ``name`` is what the sentence calls it."""
    try:
        value = json.loads(content)
        _check_values(value)
    except RecursionError:
        raise error(f"{name} is damaged: it is nested too deeply") from None
    except ValueError as reason:  # also of the decoding of bytes
        fault = "a number in it is too large" if "digits" in str(reason) else str(reason)[:200]
        raise error(f"{name} is damaged: {fault}") from None
    if not isinstance(value, dict):
        raise error(f"{name} should hold a JSON object, not {type(value).__name__}")
    for key, kind in (keys or {}).items():
        if key not in value:
            raise error(f"{name} lacks {key}")
        if not isinstance(value[key], kind) or (isinstance(value[key], bool) and kind is int):
            wanted = getattr(kind, "__name__", str(kind))
            raise error(f"{name}: {key} should be of type {wanted}, not {type(value[key]).__name__}")
    return value


def _check_values(value: object, depth: int = 0) -> None:
    """Refuse deep nesting, numbers that nothing here can have, and halves of characters, which cannot be printed."""
    if depth > MAX_JSON_DEPTH:
        raise RecursionError
    if isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_values(item, depth + 1)
    elif isinstance(value, str):
        value.encode()
    elif value is not None and not (abs(value) < 2**64 if isinstance(value, int) else math.isfinite(value)):
        raise ValueError("a number in it is too large, or is not a number")


def misfit(value: object, wanted: object, place: str, whole: bool) -> str | None:
    """The first place inside of a JSON value that has another type than wanted.

    Args:
        wanted: a type, or a dictionary or list of one element that holds what is wanted inside.
        place: the name of the value, such as "training"; for "training.total" it is returned like this.
        whole: whether all of it has to be there.
    """
    if value is None and place.rpartition(".")[2] in _NOT_MEASURED:
        return None
    if isinstance(wanted, dict) and isinstance(value, dict):
        if absent := [n for n in wanted if n not in value and n not in _NOT_MEASURED] if whole else []:
            return f"{place}.{absent[0]}"
        names = [name for name in wanted if name in value]
        return next(filter(None, (misfit(value[n], wanted[n], f"{place}.{n}", whole) for n in names)), None)
    if isinstance(wanted, list) and isinstance(value, list):
        return next(filter(None, (misfit(item, wanted[0], place, whole) for item in value)), None)
    return None if not isinstance(wanted, dict | list) and isinstance(value, wanted) else place


def sha256(path: Path) -> str:
    """The sha256 of a file, computed once for each state of it: gigabytes of weights are hashed more than once."""
    state = path.stat()
    return _sha256(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def sha256_if_there(path: Path) -> str | None:
    """The same, None where there is no such file, or none can have this name."""
    try:
        return sha256(path) if path.is_file() else None
    except (OSError, ValueError):
        return None


@cache
def _sha256(path: Path, *_state: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
