"""Hashes of the files of a model: written beside them when it is saved, compared each time it is loaded."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.memory import is_out_of_memory
from helpers.records import read_json
from helpers.settings import shown
from helpers.storage import COPIES, sha256_if_there

MANIFEST = "manifest.json"
_SHA256 = re.compile("[0-9a-f]{64}")


class ModelError(RuntimeError):
    """A model that cannot be fetched, read or used; the message says why and what to do."""


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn whatever the libraries raise for the files of a folder into one ModelError."""
    try:
        yield
    except BaseException as error:  # a damaged configuration can make a library raise anything
        panicked = type(error).__name__ == "PanicException"  # of a library in Rust, which is no Exception
        if not (isinstance(error, Exception) or panicked) or isinstance(error, ModelError) or is_out_of_memory(error):
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


def read_manifest(folder: Path) -> dict[str, str]:
    """The sha256 of each file by its name; ModelError if the manifest is damaged or leaves out a weight file."""
    path = folder / MANIFEST
    remedy = "if this project made the folder, delete it and make or fetch it again"
    hashes = read_json(path, lambda reason: ModelError(f"{reason}; {remedy}"))
    if not all(_SHA256.fullmatch(str(digest)) and len(name) < 256 for name, digest in hashes.items()):
        raise ModelError(f"{shown(path)} is damaged: it should hold file names with their sha256; {remedy}")
    if unlisted := {f.name for f in folder.glob("*.safetensors")} - hashes.keys():
        raise ModelError(f"{shown(path)} does not list {min(unlisted)}, so nobody vouches for that file")
    return hashes


def check_files(folder: Path) -> None:
    """Compare the files of a model with the hashes of its manifest or of the hub's cache; ModelError names one that differs."""
    again = f"delete the folder {shown(folder)} and run the notebook that made it again"
    try:
        expected = read_manifest(folder)
    except FileNotFoundError:  # the hub's cache names the content of each large file by its sha256
        stored = {f.name: f.resolve().name for f in folder.iterdir() if f.is_symlink()}
        expected = {name: digest for name, digest in stored.items() if _SHA256.fullmatch(digest)}
        again = None
    for name, digest in zip(expected, hash_files([folder / name for name in expected]), strict=True):
        if digest != expected[name]:
            remedy = again or f"delete {(folder / name).resolve()} and run this again to fetch it"
            raise ModelError(f"{shown(folder / name)} is missing or damaged: its sha256 does not match; {remedy}")


def hash_files(files: list[Path]) -> list[str | None]:
    """The sha256 of each file, None for one that is missing; hashing releases the interpreter, so threads help."""
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(sha256_if_there, files))


def check_replaceable(folder: Path) -> None:
    """Make sure that replacing a folder loses nothing: it is absent, empty, or holds only what this project wrote.

    The copies that JupyterLab makes of a file that was opened do not count.

    Raises:
        ModelError: says what is there.
    """
    names = {f.name for f in folder.iterdir()} - {COPIES} if folder.is_dir() else set()
    known = {MANIFEST, "README.md", *read_manifest(folder)} if MANIFEST in names else set()  # PEFT writes a README
    if folder.is_symlink():
        found = f"is a link to {os.readlink(folder)}"
    elif folder.exists() and not folder.is_dir():
        found = "is a file"
    elif names <= known:
        return
    else:
        found = f"holds {min(names - known)!r}, which this project did not write"
    raise ModelError(f"{shown(folder)} {found}, so it is left alone: move it away, or choose another folder")
