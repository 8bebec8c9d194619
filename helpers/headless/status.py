"""What happened to each notebook, kept in ``status.json`` as it happens, and whether that still stands."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from helpers.headless.masking import mask_secrets
from helpers.headless.parameters import promised
from helpers.records import FILE_NAME, RecordError, load, lost_files, read_json, sha256, write_atomically
from helpers.settings import PROFILES, ROOT

STATES = ("running", "ok", "failed", "timed out", "interrupted", "killed")
_TEXTS = ("why", "heading", "source", "last_lines", "started", "finished", "digest")
_NUMBERS = ("cell", "cells", "seconds", "peak")


class Status:
    """The status file of one output folder, such as ``runs/small``."""

    def __init__(self, folder: Path, profile: str):
        """Read the file, or start an empty one where there is none; entries that are damaged are left out."""
        self.folder, self.file = folder, folder / "status.json"
        self.profile, self.notebooks = profile, {}
        self.damaged = False
        try:
            entries = read_json(self.file, RecordError, {"notebooks": dict})["notebooks"]
            self.notebooks = {name: entry for name, entry in entries.items() if _is_entry(entry)}
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

    def executed(self, notebook: Path) -> Path:
        """Where the executed copy of a notebook is kept."""
        return self.folder / "notebooks" / notebook.name

    def used(self, notebook: Path, parameters: dict, before: dict[str, str], reads: dict[str, str] | None) -> dict:
        """For the entry of a notebook that passed: all that it used and made, and one hash over that.

        Args:
            before: :func:`inputs` as they were when it started.
            reads: the hash of each file that its kernel read, as it was then; None if that is not known.
        """
        after = inputs(notebook, parameters)
        hashes = {name: digest if after.get(name) == digest else "changed" for name, digest in before.items()}
        hashes |= {_name(Path(path)): digest for path, digest in (reads or {}).items()}
        hashes |= self.record_hashes(notebook, parameters)
        return {"used": sorted(hashes), "digest": None if reads is None else combined(parameters, hashes)}

    def up_to_date(self, notebook: Path, parameters: dict) -> bool:
        """Whether a notebook passed, and every file that it used or made is what it was then."""
        entry = self.entry(notebook)
        used = {name: _hash(ROOT / name) for name in entry.get("used", ())}
        return (
            entry.get("status") == "ok"
            and entry.get("digest") == combined(parameters, used)
            and used.keys() >= {_name(notebook)}
            and self.executed(notebook).is_file()
            and not self.missing_records(notebook, parameters)
        )

    def records(self, notebook: Path, parameters: dict) -> list[Path]:
        """Where the records are that a notebook promises."""
        seed = parameters.get("seed", PROFILES[self.profile]["seed"])
        return [self.folder / f"{method}-s{seed}" / FILE_NAME for method in promised(notebook)]

    def record_hashes(self, notebook: Path, parameters: dict) -> dict[str, str]:
        """The hash of each of these records, by name."""
        return {_name(path): _hash(path) for path in self.records(notebook, parameters)}

    def missing_records(self, notebook: Path, parameters: dict, former: dict[str, str] | None = None) -> list[Path]:
        """The promised records that are absent or damaged, lack a file that they list, or are still a ``former`` one."""
        missing = []
        for path in self.records(notebook, parameters):
            try:
                if lost_files(load(path), path.parent) or (former and former.get(_name(path)) == _hash(path)):
                    missing.append(path)
            except RecordError:
                missing.append(path)
        return missing


def _is_entry(entry: object) -> bool:
    """Whether an entry of the file has the shape that this module writes."""
    if not isinstance(entry, dict) or entry.get("status") not in STATES or not isinstance(entry.get("used", []), list):
        return False
    texts = [entry.get(name) for name in _TEXTS] + entry.get("used", [])
    numbers = [entry.get(name) for name in _NUMBERS]
    return all(t is None or isinstance(t, str) for t in texts) and all(
        n is None or type(n) in (int, float) for n in numbers
    )


def inputs(notebook: Path, parameters: dict) -> dict[str, str]:
    """The hash of the notebook and of each local file of its data, by name."""
    files, data = [notebook], Path(str(parameters.get("data") or "bundled")).expanduser()
    for path in (notebook.parent / data, ROOT / data):
        files += [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()] if path.is_dir() else []
    return {_name(path): _hash(path) for path in files}


def combined(parameters: dict, hashes: dict[str, str]) -> str:
    """One hash over the parameters of a run and the files it used."""
    content = json.dumps([parameters, sorted(hashes.items())], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _name(path: Path) -> str:
    """A path as the status file names it: relative to the repository where it lies inside."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _hash(path: Path) -> str:
    try:
        return sha256(path)
    except (OSError, ValueError):
        return "missing"
