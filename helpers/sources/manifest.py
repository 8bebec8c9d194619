"""Hashes of the files of a model: written beside them when it is saved, compared each time it is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from helpers.memory import is_out_of_memory
from helpers.settings import shown

from safetensors import SafetensorError

MANIFEST = "manifest.json"


class ModelError(RuntimeError):
    """A model that cannot be fetched, read or used; the message says why and what to do."""


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what the libraries raise for unreadable files into one sentence.

    Raises:
        ModelError: names the folder and the cause.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError) or is_out_of_memory(error):
            raise
        raise ModelError(
            f"{shown(folder)} could not be read as a model ({' '.join(str(error).split())[:200]}): a file is damaged, "
            "incomplete or of another format; copy or fetch the model again"
        ) from error


@contextlib.contextmanager
def quiet():
    """Keep the progress bars and advice of the libraries out of a notebook; errors still show."""
    from datasets.utils import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
        enable_progress_bars()


def write_manifest(folder: Path) -> None:
    """Write the sha256 of every file of a model or adapter beside them, except documentation."""
    names = sorted(f.name for f in folder.iterdir() if f.is_file() and f.suffix != ".md" and f.name != MANIFEST)
    hashes = dict(zip(names, hash_files([folder / name for name in names]), strict=True))
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def check_files(folder: Path) -> None:
    """Compare the files of a model with their hashes: those of the manifest, or of the hub's cache.

    Raises:
        ModelError: names the first file that is missing or differs.
    """
    expected = _expected(folder)
    for name, digest in zip(expected, hash_files([folder / name for name in expected]), strict=True):
        if digest != expected[name]:
            again = f"delete {(folder / name).resolve()} and run this again to fetch it"
            if (folder / MANIFEST).is_file():
                again = f"delete the folder {shown(folder)} and run the notebook that made it again"
            raise ModelError(
                f"{shown(folder / name)} is missing or damaged: its sha256 is not the one expected; {again}"
            )


def _expected(folder: Path) -> dict[str, str]:
    """sha256 by file; the hub's cache names the content of each large file by its sha256. Empty where none is known."""
    if (folder / MANIFEST).is_file():
        with reading(folder):
            return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    stored = {f.name: f.resolve().name for f in folder.iterdir() if f.is_symlink()}
    return {name: digest for name, digest in stored.items() if re.fullmatch("[0-9a-f]{64}", digest)}


def hash_files(files: list[Path]) -> list[str | None]:
    """The sha256 of each file, None for one that is missing; hashing releases the interpreter, so threads help."""
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda file: sha256(file) if file.is_file() else None, files))


def sha256(path: Path) -> str:
    """The sha256 of a file, computed once for each state of it: gigabytes of weights are hashed more than once."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, *_) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
