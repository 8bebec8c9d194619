"""Checkpoints inside a training: whole or passed over, of these settings or refused.

A checkpoint is a folder ``checkpoint-<step>`` as transformers' Trainer writes it, with the trained weights as
safetensors. ``checkpoint.json`` is written last, in one step: it holds size and sha256 of each file, what the run was
given, its steps so far, and a hash of itself. A folder without it was never finished. Nothing else in the folder of the
checkpoints is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from helpers.device import Plan
from helpers.engine.preflight import TrainingError, disk_space, whole
from helpers.models import adapter_config
from helpers.records import CHECKPOINT, CHECKPOINTS, folder_sizes, read_json, write_atomically
from helpers.settings import Settings, shown
from helpers.sources import Base
from helpers.storage import sha256

import torch
from safetensors.torch import load_file, save_file

SEAL = "checkpoint.json"
WEIGHTS = "trained.safetensors"
# settings that change neither the weights nor the losses of a training
IRRELEVANT = {"save_steps", "max_new_tokens", "eval_batch_size", "runs_dir", "devices", "report_to"}
ADAPTER = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "init_lora_weights")  # PEFT fills in others


def conditions(settings: Settings, base: Base, rows: str, plan: Plan, adapter=None) -> dict:
    """All that decides the losses of a run: a checkpoint of any other run cannot be resumed.

    Args:
        rows: the fingerprint of the rows in their order.
    """
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
        """The newest whole checkpoint of an unfinished run; all others are removed. A finished result stays as it is.

        Raises:
            TrainingError: if it belongs to a run with other settings.
        """
        newest = self._newest() if resume else None
        for entry in self._found().values():
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

    def _found(self) -> dict[int, Path]:
        """The folders, and links to folders, that have the name of a checkpoint, by step."""
        folders = {f.name: f for f in self.folder.glob("checkpoint-*") if f.is_dir() or f.is_symlink()}
        return {int(n[11:]): f for n, f in folders.items() if re.fullmatch(CHECKPOINT, n)}

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint whose writing was finished."""
        return max((step for step, folder in self._found().items() if (folder / SEAL).is_file()), default=None)

    def _newest(self) -> Checkpoint | None:
        for step, folder in sorted(self._found().items(), reverse=True):
            seal, fault = _read(folder, step)
            if fault:
                self.passed_over.append(f"{folder.name}: {fault}")
                continue
            there, now = seal["conditions"], self.conditions
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
            return Checkpoint(folder, step, seal["steps"], seal["seconds"])
        return None

    @contextlib.contextmanager
    def saving(self, model, steps: list[dict], seconds: float) -> Iterator[None]:
        """Around the writing of one checkpoint: room is checked before, the seal is written after.

        Raises:
            TrainingError: if there is too little room, or the checkpoint could not be written; it is removed then.
        """
        folder = self.folder / f"checkpoint-{steps[-1]['step']}"
        disk_space(self.folder, checkpoint_size(model), folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        with whole(folder):
            yield
            files = {
                name: {"bytes": number, "sha256": sha256(folder / name)}
                for name, number in folder_sizes(folder).items()
            }
            seal = {"conditions": self.conditions, "files": files, "steps": steps, "seconds": seconds}
            write_atomically(folder / SEAL, json.dumps(seal | {"seal": _hash(seal)}, indent=1))


def _hash(seal: dict) -> str:
    return hashlib.sha256(json.dumps(seal).encode()).hexdigest()


def _read(folder: Path, step: int) -> tuple[dict, str | None]:
    """The seal of a checkpoint and what is wrong with it, None where it is whole."""
    if folder.is_symlink():
        return {}, f"it is a link to {folder.readlink()}"
    try:
        seal = read_json(folder / SEAL, ValueError)
    except FileNotFoundError:
        return {}, f"its writing was never finished ({SEAL}, written last, is not there)"
    except ValueError:
        return {}, f"{SEAL} is damaged"
    if seal.pop("seal", None) != _hash(seal):
        return {}, f"{SEAL} is damaged"
    if seal["steps"][-1]["step"] != step:
        return {}, f"it was renamed: it holds step {seal['steps'][-1]['step']}"
    for name, expected in seal["files"].items():
        file = folder / name
        if not file.is_file():
            return {}, f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return {}, f"{name} has {file.stat().st_size} of {expected['bytes']} bytes"
        if sha256(file) != expected["sha256"]:
            return {}, f"{name} is damaged: its sha256 is not the one in {SEAL}"
    return seal, None


def checkpoint_size(model) -> int:
    """Predicted bytes of a checkpoint: the trained weights, two AdamW states of each, fp32 masters, and a little."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return sum(p.numel() * (p.element_size() + (8 if p.element_size() == 4 else 12)) for p in trained) + 1_000_000


def save_trained(model, folder: Path) -> None:
    """Write the weights that are trained, as they are trained."""
    tensors = {name: value.detach().contiguous() for name, value in model.named_parameters() if value.requires_grad}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)


def load_trained_weights(model, folder: Path) -> None:
    """Put the weights of a checkpoint into the model that will be trained further.

    Raises:
        TrainingError: if the checkpoint holds other weights than the model trains.
    """
    tensors = load_file(folder / WEIGHTS)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if trained.keys() != tensors.keys():
        raise TrainingError(f"{shown(folder)} holds other weights than this model trains; delete it to start again")
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(tensors[name])
