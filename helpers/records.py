"""Run records: what a run was given, what it did and what came out, as one JSON file. Standard library only.

A record is written last and in one step, so where it exists the run finished. What is unknown is None, never a guess.
"""

from __future__ import annotations

import contextlib
import json
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import get_type_hints

from helpers.settings import AFTER_SFT
from helpers.storage import COPIES, misfit, read_json, sha256_if_there, write_atomically
from helpers.storage import RecordError as RecordError
from helpers.storage import parse_json as parse_json
from helpers.storage import sha256 as sha256

VERSION = 1
FILE_NAME = "record.json"
CHECKPOINTS = "checkpoints"  # the folder of an unfinished training's checkpoints
CHECKPOINT = "checkpoint-[1-9][0-9]{0,8}"  # the name of each, with its step
REFERENCE_NOTE = "reference record, not your run"
REFERENCE = Path(__file__).resolve().parent / "reference"
_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes")

_NUMBER = int | float
_LOSSES = {"loss": _NUMBER, "losses": [[_NUMBER]]}
_REPLIES = [{"question": str, "reference": str, "reply": str}]
# What the notebooks and the comparison read inside of a record. What is there has this type; see :meth:`RunRecord.lacking`.
_HOLDS = {
    "model": {"fingerprint": str},
    "device": {"name": str, "total_memory": int | None},
    "decisions": {"precision": {"value": str}},
    "data": {"source": str, "fingerprints": {"train": str}},
    "training": {
        "trainable": int, "total": int, "train_seconds": _NUMBER | None, "tokens_per_second": _NUMBER | None, "changed_share": _NUMBER,
        "validation_loss": [_NUMBER], "manifest": dict, "energy": _NUMBER | None,
    },
    "memory": {"peak": int},
    "evaluation": {
        "fingerprint": str, "exact_match": [int], "harder": [int], "families": [str], "replies": _REPLIES,
        "prose": _LOSSES | {"replies": _REPLIES}, "general": _LOSSES, "unrelated": _LOSSES,
        "baselines": {"guess": _NUMBER} | {way: {"right": [int]} for way in ("instructed", "six examples", "three of the family")},
    } | _LOSSES,
    "settings": {"learning_rate": _NUMBER, "rank": int}, "steps": [{"step": int, "loss": _NUMBER}], "guards": [dict], "update": [dict],
}  # fmt: skip


@dataclass
class RunRecord:
    """One run. Bytes are plain integers, times are seconds, losses are nats per supervised token."""

    method: str  # "base" for the untouched model, otherwise one of settings.METHODS
    profile: str
    seed: int
    status: str = "started"  # started, ok
    version: int = VERSION
    started: str = ""  # ISO 8601, UTC
    finished: str | None = None
    commit: str | None = None
    dirty: bool | None = None  # whether the working tree had uncommitted changes
    environment: dict = field(default_factory=dict)  # versions and platform, from an allow-list
    device: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)  # source, revision, fingerprint, parameters
    data: dict = field(default_factory=dict)  # source, fingerprints of the splits, counts
    decisions: dict = field(default_factory=dict)  # precision, attention, checkpointing, each with its reason
    guards: list = field(default_factory=list)  # {"name", "detail"}; a guard that fails stops the run
    steps: list = field(default_factory=list)  # {"step", "loss", "grad_norm", "learning_rate", "seconds"}
    training: dict = field(default_factory=dict)  # tokens, seconds, joules (energy), trainable and total parameters
    memory: dict = field(default_factory=dict)  # predicted by part, measured peak, timeline
    evaluation: dict | None = None
    files: dict = field(default_factory=dict)  # name -> bytes of what was saved
    update: list = field(default_factory=list)  # singular values of the weight update, by layer
    note: str | None = None

    def lacking(self) -> str | None:
        """A place inside of a finished record that is empty or was edited, such as "training.trainable"; None without any."""
        parts = [name for name in _HOLDS if self.method != "base" or name not in ("training", "memory")]
        return next(filter(None, (misfit(getattr(self, n), _HOLDS[n], n, whole=True) for n in parts)), None)

    def describe_input(self, base, plan, data) -> None:
        """Fill in the base model, the device with the decisions on its use, and the data."""
        self.device, self.decisions, self.data = vars(plan.device), plan.decisions, data.summary()
        self.model = {"source": base.name, "revision": base.revision, "parameters": base.shape.parameters}
        self.model["fingerprint"] = base.fingerprint

    def save(self, folder: Path) -> Path:
        """Write ``record.json`` into the folder in one step, marked finished, and return its path.

        The checkpoints of the run have then served their purpose and are removed.

        Raises:
            RecordError: where the disk is full or the folder cannot be written (nothing partial is left), or where another
                run has replaced the weights that this record speaks of.
        """
        if _replaced(self, Path(folder)):
            raise RecordError(f"another run has put its own weights into {folder} meanwhile: run this notebook again")
        self.status, self.finished = "ok", self.finished or now()
        path = Path(folder) / FILE_NAME
        known = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)  # NaN and infinity are no JSON
        write_atomically(path, json.dumps(known, indent=1))
        for checkpoint in Path(folder, CHECKPOINTS).glob("checkpoint-*"):
            if re.fullmatch(CHECKPOINT, checkpoint.name):
                shutil.rmtree(checkpoint, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is not there, or holds something of yours
            Path(folder, CHECKPOINTS).rmdir()
        return path


def load(path: Path) -> RunRecord:
    """Read and validate one record: its file, or the folder of the run. A RecordError says what is wrong with it."""
    path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)

    def error(sentence: str) -> RecordError:
        return RecordError(f"{sentence}; run the notebook that wrote it again")

    try:
        version = read_json(path, error, {"version": int})["version"]
        if version != VERSION:
            raise error(f"{path} is a record of version {version}, this code reads version {VERSION}")
        raw = read_json(path, error, get_type_hints(RunRecord))
    except FileNotFoundError:
        raise RecordError(f"there is no finished run in {path.parent.name}: {path.name} is not there") from None
    if unknown := sorted(raw.keys() - RunRecord.__dataclass_fields__.keys()):
        raise error(f"{path} has unknown {', '.join(unknown)}")
    for name, inside in (_HOLDS | {"files": dict.fromkeys(raw["files"], int)}).items():
        if place := misfit(raw[name], inside, name, whole=False):
            raise error(f"{path} is damaged: {place} is of another type")
    if raw["status"] != "ok":
        raise RecordError(f"{path}: this run did not finish (status {raw['status']!r})")
    return RunRecord(**raw)


def folder_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file below a folder, by its path inside, largest first; without the copies that JupyterLab makes."""
    files = [f for f in Path(folder).rglob("*") if f.is_file() and f.parent.name != COPIES]
    sizes = {str(f.relative_to(folder)): f.stat().st_size for f in files}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def lost_files(record: RunRecord, folder: Path) -> list[str]:
    """The files that a record lists and that are not in its folder with their size; documentation may be left out."""
    there = folder_sizes(folder)
    lost = [n for n, size in record.files.items() if there.get(n) != size and not n.endswith((".md", FILE_NAME))]
    return lost + _replaced(record, folder)


def _replaced(record: RunRecord, folder: Path) -> list[str]:
    """The list of hashes beside the weights, if it is no longer the one that the run wrote."""
    written = record.training.get("manifest") or {}
    return [name for name, digest in written.items() if sha256_if_there(folder / name) not in (digest, None)]


def load_series(folder: Path, after_sft: bool = False) -> list[RunRecord]:
    """Every finished run under a folder such as ``runs/small``, ordered by method and seed.

    Those of 11_after_sft, whose training loss is another quantity, are left out unless ``after_sft`` is set. So is a copy
    under another name than that of its method and seed, and the line that is printed names it.
    """
    runs = []
    for path in sorted(Path(folder).glob(f"*/{FILE_NAME}")):
        run = load(path)
        if path.parent.name == (name := f"{run.method}-s{run.seed}"):
            runs.append(run)
        else:
            print(f"{path.parent.name} holds a copy of {name}, so it is left out")
    return _ordered([run for run in runs if after_sft or run.method not in AFTER_SFT])


def _ordered(runs: list[RunRecord]) -> list[RunRecord]:
    order = {"base": 0, "full": 2}
    return sorted(runs, key=lambda r: (order.get(r.method, 1), r.method, r.seed, r.settings.get("learning_rate") or 0))


def load_reference(name: str) -> list[RunRecord]:
    """The committed records of a reference series, such as ``small-cpu``, each marked as such in its note."""
    runs = [load(path) for path in (REFERENCE / name).glob("*.json")]
    return _ordered([replace(r, note="; ".join(filter(None, (REFERENCE_NOTE, r.note)))) for r in runs])


def load_table(name: str) -> dict:
    """A committed table of measurements, such as ``memory-7b``, with device, date, commit and environment."""
    return read_json(REFERENCE / f"{name}.json", RecordError)


def now() -> str:
    """The present time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def environment() -> dict[str, str | None]:
    """Versions of the packages that decide a result, and the platform. An allow-list: never ``os.environ``."""
    versions = {"python": platform.python_version(), "platform": platform.machine(), **dict.fromkeys(_PACKAGES)}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """The commit checked out in a folder and whether it has uncommitted changes; (None, None) outside git."""
    command = ["git", "-C", str(folder), "status", "--porcelain=v2", "--branch"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return lines[0].removeprefix("# branch.oid "), not all(line.startswith("#") for line in lines)


def begin(settings, method: str | None = None) -> RunRecord:
    """A record of a run that starts now, with identity, environment and settings filled in."""
    commit, dirty = git_state(Path(__file__).parent)
    run = RunRecord(method or settings.method, settings.profile, settings.seed, started=now())
    return replace(run, commit=commit, dirty=dirty, environment=environment(), settings=settings.table())
