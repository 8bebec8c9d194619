"""Checkpoints inside a training: whole or passed over, of these settings or refused.

Each is a folder as transformers' Trainer writes it, with ``checkpoint.json`` and, written last, the manifest of its files.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from helpers.device import Plan
from helpers.engine.preflight import TrainingError, whole
from helpers.models import adapter_config
from helpers.records import CHECKPOINT, CHECKPOINTS, read_json, write_atomically
from helpers.settings import Settings, shown
from helpers.sources import MANIFEST, Base, ModelError, check_files, write_manifest

STATE = "checkpoint.json"
# settings that change neither the weights nor the losses of a training
IRRELEVANT = {"save_steps", "max_new_tokens", "eval_batch_size", "runs_dir", "devices", "report_to"}
ADAPTER = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "init_lora_weights")  # PEFT fills in others


def conditions(settings: Settings, base: Base, rows: str, plan: Plan, adapter=None) -> dict:
    """All that decides the losses of a run; ``rows`` is the fingerprint of its rows in their order."""
    facts = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in IRRELEVANT}
    facts |= {name: choice["value"] for name, choice in plan.decisions.items()}
    facts |= {"base weights": base.fingerprint, "rows and their order": rows}
    if settings.method != "full":
        chosen = adapter or adapter_config(settings)
        facts |= {f"adapter's {name}": getattr(chosen, name, None) for name in ADAPTER}
    return facts


@dataclass
class Checkpoint:
    """A whole checkpoint: where it is, and the steps and seconds of training that led to it."""

    folder: Path
    step: int
    steps: list[dict]
    seconds: float


class Checkpoints:
    """The checkpoints of one run. ``passed_over`` says which were not used and why."""

    def __init__(self, run: Path, conditions: dict):
        self.folder, self.conditions = run / CHECKPOINTS, conditions
        self.passed_over: list[str] = []

    def begin(self, resume: bool) -> Checkpoint | None:
        """The newest whole checkpoint of an unfinished run, if its settings are these; all others are removed."""
        newest = self._newest() if resume else None
        for entry in self._found():
            if not newest or entry != newest.folder:
                entry.unlink() if entry.is_symlink() else shutil.rmtree(entry)
        self.folder.mkdir(parents=True, exist_ok=True)
        for reason in self.passed_over:
            print(f"passed over: {reason}")
        if newest:
            print(f"resuming after step {newest.step}, from {shown(newest.folder)}")
        elif self.passed_over:
            print("no whole checkpoint is left: starting again from step 0")
        return newest

    def _found(self) -> list[Path]:
        """The folders, and links to folders, that have the name of a checkpoint, the newest first."""
        named = [f for f in self.folder.glob("checkpoint-*") if re.fullmatch(CHECKPOINT, f.name)]
        return sorted((f for f in named if f.is_dir() or f.is_symlink()), key=_step, reverse=True)

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint whose writing was finished."""
        return next((_step(folder) for folder in self._found() if (folder / MANIFEST).is_file()), None)

    def _newest(self) -> Checkpoint | None:
        for folder in self._found():
            try:
                there, checkpoint = _read(folder)
            except ModelError as fault:
                self.passed_over.append(f"{folder.name}: {str(fault).partition(';')[0]}")
                continue
            now = self.conditions
            changed = [
                f"{name} was {there.get(name)!r} and is {now.get(name)!r}"
                for name in now | there  # settings first
                if there.get(name) != now.get(name)
            ]
            if changed:
                raise TrainingError(
                    f"{shown(self.folder)} holds the checkpoints of an unfinished run with other settings: "
                    f"{'; '.join(changed[:4])}. Set that back to resume it, or delete the folder (or call "
                    "train(..., resume=False)) to start again"
                )
            return checkpoint
        return None

    @contextlib.contextmanager
    def saving(self, steps: list[dict], seconds: float) -> Iterator[None]:
        """Around the writing of one checkpoint, which is removed if it cannot be written whole; its manifest comes last."""
        folder = self.folder / f"checkpoint-{steps[-1]['step']}"
        shutil.rmtree(folder, ignore_errors=True)
        with whole(folder):
            yield
            state = {"conditions": self.conditions, "steps": steps, "seconds": seconds}
            write_atomically(folder / STATE, json.dumps(state, indent=1))
            write_manifest(folder)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _read(folder: Path) -> tuple[dict, Checkpoint]:
    """The conditions of a checkpoint, and itself; a ModelError says what is wrong with it."""
    if folder.is_symlink():
        raise ModelError(f"it is a link to {folder.readlink()}")
    if not (folder / MANIFEST).exists():
        raise ModelError(f"its writing was never finished ({MANIFEST}, written last, is not there)")
    check_files(folder)
    state = read_json(folder / STATE, ModelError)
    step = state["steps"][-1]["step"]
    if step != _step(folder):
        raise ModelError(f"it was renamed: it holds step {step}")
    return state["conditions"], Checkpoint(folder, step, state["steps"], state["seconds"])
