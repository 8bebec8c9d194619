"""What happened to each notebook, kept in ``status.json`` as it happens, and whether that still stands."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from helpers.headless.masking import mask_secrets
from helpers.headless.parameters import NAME, parameters_of, promised
from helpers.records import FILE_NAME, RecordError, load, lost_files, read_json, write_atomically
from helpers.settings import PROFILES, ROOT, shown
from helpers.storage import COPIES, misfit, sha256_if_there

HELPERS = ROOT / "helpers"
STATES = ("running", "ok", "failed", "timed out", "interrupted", "killed")
_ENTRY = dict.fromkeys(("why", "heading", "source", "last_lines", "started", "finished"), str | None)
_ENTRY |= dict.fromkeys(("cell", "cells", "seconds", "peak"), int | float | None) | {"used": dict, "parameters": dict}


class Status:
    """The status file of one output folder, such as ``runs/small``."""

    def __init__(self, folder: Path, profile: str):
        """Read the file, or start an empty one where there is none; entries that are damaged are left out."""
        self.folder, self.file = folder, folder / "status.json"
        self.profile, self.notebooks, self.damaged = profile, {}, False
        try:
            entries = read_json(self.file, RecordError, {"notebooks": dict})["notebooks"]
            for name, entry in entries.items():
                if re.fullmatch(NAME, name) and not misfit(entry, _ENTRY, name, whole=False):
                    self.notebooks |= {name: entry} if entry.get("status") in STATES else {}
            self.damaged = len(self.notebooks) < len(entries)
        except FileNotFoundError:
            pass
        except RecordError:
            self.damaged = True

    def entry(self, notebook: Path) -> dict:
        """What is known of a notebook; empty if it never ran."""
        return self.notebooks.get(notebook.stem, {})

    def begin(self, notebook: Path, **fields) -> None:
        """Forget the last run of a notebook, and note that one starts."""
        self.notebooks.pop(notebook.stem, None)
        self.update(notebook, status="running", **fields)

    def update(self, notebook: Path, **fields) -> None:
        """Add to what is known of a notebook, and write the file."""
        self.notebooks.setdefault(notebook.stem, {}).update(mask_secrets(fields))
        content = {"profile": self.profile, "notebooks": dict(sorted(self.notebooks.items()))}
        write_atomically(self.file, json.dumps(content, indent=1))

    def used(self, notebook: Path, parameters: dict, before: dict[str, tuple], reads: list[str]) -> dict[str, str]:
        """The hash of each file that a notebook used or made, "changed" for one that was written while it ran.

        Args:
            before: :func:`states` when it started.
            reads: the other files that its kernel read.
        """
        names = [shown(path) for path in [*inputs(notebook, parameters), *map(Path, reads)]]
        changed = {name for name, state in before.items() if _state(name) != state}
        hashes = {name: "changed" if name in changed else _hash(name) for name in names}
        return hashes | self.records(notebook, parameters)

    def up_to_date(self, notebook: Path, parameters: dict) -> bool:
        """Whether a notebook passed with these parameters, and every file that it used or made is what it was then."""
        entry = self.entry(notebook)
        return (
            entry.get("status") == "ok"
            and entry.get("parameters") == parameters
            and shown(notebook) in entry.get("used", {})
            and all(_hash(name) == digest for name, digest in entry["used"].items())
            and (self.folder / "notebooks" / notebook.name).is_file()
            and not self.missing_records(notebook, parameters, {})
        )

    def records(self, notebook: Path, parameters: dict) -> dict[str, str]:
        """The records that a notebook promises, with their hashes."""
        seed = (parameters_of(notebook) | parameters).get("seed")
        seed = PROFILES[self.profile]["seed"] if seed is None else seed
        names = [shown(self.folder / f"{method}-s{seed}" / FILE_NAME) for method in promised(notebook)]
        return {name: _hash(name) for name in names}

    def missing_records(self, notebook: Path, parameters: dict, former: dict[str, str]) -> list[Path]:
        """The promised records that are damaged or absent, lack a file that they list, or are still the former ones."""
        missing = []
        for name, digest in self.records(notebook, parameters).items():
            path = ROOT / name
            try:
                if digest == former.get(name) or lost_files(load(path), path.parent):
                    missing.append(path)
            except RecordError:
                missing.append(path)
        return missing


def inputs(notebook: Path, parameters: dict) -> list[Path]:
    """The notebook and each local file of its data, which its parameters cell may name too."""
    given = parameters_of(notebook) | parameters
    files, data = [notebook], Path(str(given.get("data") or "bundled")).expanduser()
    for path in (notebook.parent / data, ROOT / data):
        files += [path] if path.is_file() else _files(path) if path.is_dir() else []
    return files


def _files(folder: Path) -> list[Path]:
    """The files below a folder, without the copies that JupyterLab makes: looking at rows changes none."""
    return [f for f in folder.rglob("*") if f.is_file() and f.parent.name != COPIES]


def states(notebook: Path, parameters: dict) -> dict[str, tuple | None]:
    """The state of each file that may not change while a notebook runs: its inputs and the helpers, by name."""
    return {shown(path): _state(path) for path in [*inputs(notebook, parameters), *HELPERS.rglob("*.*")]}


def _state(path: str | Path) -> tuple | None:
    """What is another one after a file was written, whatever its times were set to; None without a file."""
    with suppress(OSError, ValueError):
        status = os.stat(ROOT / path)
        return status.st_ino, status.st_size, status.st_ctime_ns
    return None


def _hash(path: str | Path) -> str:
    return sha256_if_there(ROOT / path) or "missing"
