"""One training path for every method: ``train(settings, data) -> Trained``; ``notebooks/cluster/train.py`` is its command.

What differs between full fine-tuning and the adapters is the model that is handed to the trainer, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from helpers import guards, records
from helpers.data import Data
from helpers.device import World, plan
from helpers.engine.monitor import MemoryMonitor
from helpers.engine.preflight import TrainingError as TrainingError
from helpers.engine.preflight import explaining_memory
from helpers.engine.run import Run
from helpers.evaluation import baselines, evaluate
from helpers.models import load_base, load_tokenizer
from helpers.settings import Settings
from helpers.sources import resolve

import torch
from peft import PeftConfig


@dataclass
class Trained:
    """A finished training: the model as it was saved, its tokenizer, and the record, not yet saved."""

    model: torch.nn.Module | None
    tokenizer: object
    record: records.RunRecord
    folder: Path


def train(
    settings: Settings,
    data: Data,
    adapter: PeftConfig | None = None,
    model: torch.nn.Module | None = None,
    resume: bool = True,
    world: World | None = None,
) -> Trained:
    """Fine-tune the base model of the settings, prove what was trained, and save the result.

    Where several processes train together, each calls this with the same settings: the rows of each step are divided
    among them, and the main process saves.

    Args:
        data: the encoded splits.
        adapter: the PEFT configuration; by default that of the method.
        model: to start from instead of a fresh load; it must equal the base in its files.
        resume: from the newest whole checkpoint of an unfinished run with the same settings, where one process trains
            with ``save_steps``.
        world: of this process, from :func:`helpers.engine.distributed.join`.

    Returns:
        The model as saved (a full model in the precision of the arithmetic, an adapter on its base), and a record
        that lacks only the evaluation. In other processes than the main one: no model, and a record without results.

    Raises:
        GuardError: if the run is not what its name says.
        TrainingError: if the loss is not finite, the device or the disk has too little room, the checkpoints found are
            those of other settings, or another process trains into the same folder.
        ModelError: if the place of the result holds something that this project did not write.
        Stopped: if you interrupt it; the message says what is kept.
    """
    run = Run(settings, data, adapter, world or World())
    with run.alone(), MemoryMonitor(run.plan.device) as monitor, explaining_memory(run.plan):
        run.load(model)
        run.choose_path(monitor, resume)
        run.fit(monitor)
        run.prove(monitor.result())
        run.save()
    run.describe()
    return Trained(run.model, run.tokenizer, run.record, settings.folder)


def measure_base(settings: Settings, data: Data) -> Trained:
    """Load the untouched base and evaluate it: the row that every method is compared with. The record is not saved yet."""
    record, base = records.begin(settings, "base"), resolve(settings)
    base.require_positions(data.rows)
    chosen, tokenizer = plan(settings, base.shape), load_tokenizer(base)
    model = load_base(base, **chosen.loading)
    guards.tokens_are_sound(data, tokenizer, model.get_input_embeddings().num_embeddings)
    record.describe_input(base, chosen, data)
    record.evaluation = evaluate(model, tokenizer, data, settings)
    record.evaluation["baselines"] = baselines(model, tokenizer, data, settings) if data.source == "bundled" else None
    return Trained(model, tokenizer, record, settings.series_folder / f"base-s{settings.seed}")
