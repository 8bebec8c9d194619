"""What the scenes of 10_spot_the_bug share, and the checks of its exercises."""

import math
import random
import tempfile
import textwrap
from dataclasses import replace

from helpers.batches import Collator
from helpers.data import Data, Example
from helpers.exercises import check, expect, need
from helpers.guards import GuardError
from helpers.models import load_base
from helpers.settings import IGNORED, Settings
from helpers.sources import DataError, quiet, resolve

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

FAULTS = {"doubled start", "masked end", "leaked test"}


def fresh(tiny: Settings, dtype: torch.dtype = torch.float32):
    """The tiny model from its files, trained nowhere."""
    return load_base(resolve(tiny), "fp32").to(dtype)


def one_family(data: Data, family: str) -> Data:
    """The rows of one family of questions, which the tiny model learns in a second."""
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return replace(data, **{name: [e for e in rows if e.family == family] for name, rows in splits.items()})


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """One padded batch of rows with ``input_ids`` and ``labels``."""
    return Collator(flat=False, padding=0)([{"rows": rows}])


def batches(rows: list[Example], size: int = 8) -> list[dict[str, torch.Tensor]]:
    """The rows as padded batches: ``input_ids``, ``labels`` and ``attention_mask``, each of shape (rows, longest)."""
    return [collate([vars(row) for row in rows[start : start + size]]) for start in range(0, len(rows), size)]


def fit_with_trainer(model, rows: list[Example], batch_size: int, devices: int, accumulation: int = 1) -> Trainer:
    """One epoch with the Trainer of transformers, told that it sees this many GPUs; the rest is the library's own."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        options = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
        options |= {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        arguments = TrainingArguments(folder, num_train_epochs=1, learning_rate=1e-2, **options)
        arguments._n_gpu = devices  # what it would have counted itself
        data = Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in rows])
        trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


def ask(guard, *arguments) -> None:
    """Call a guard, and print its verdict."""
    try:
        guard(*arguments)
        print("The guard has no objection.")
    except (GuardError, DataError) as error:
        print(textwrap.fill(f"{type(error).__name__}: {error}", 100))


def case(data: Data, tokenizer, seed: int) -> Data:
    """A data set with two of the three :data:`FAULTS`, chosen by the seed."""
    rng, train = random.Random(seed), list(data.train)
    for fault in rng.sample(sorted(FAULTS), 2):
        for number in rng.sample(range(len(train)), 3):
            row, eos = train[number], tokenizer.eos_token_id
            if fault == "leaked test":
                train[number] = rng.choice(data.test)
            elif fault == "masked end":
                train[number] = replace(row, labels=[IGNORED if label == eos else label for label in row.labels])
            else:
                ids = [tokenizer.bos_token_id, *row.input_ids]
                train[number] = replace(row, input_ids=ids, labels=[IGNORED, *row.labels])
    return replace(data, train=train)


@check
def case_solved(faults: set, *, case: Data, tokenizer) -> str:
    """The names of the faults in the training rows of a case."""
    held_out = {str(e.prompt) for e in case.test}
    truth = {
        "doubled start": any(e.input_ids[:2] == [tokenizer.bos_token_id] * 2 for e in case.train),
        "masked end": any(tokenizer.eos_token_id not in e.labels for e in case.train),
        "leaked test": any(str(e.prompt) in held_out for e in case.train),
    }
    need(faults <= FAULTS, f"the faults are called {', '.join(sorted(FAULTS))}.")
    again = "A guard stops at its first fault: mend that one, and call it again."
    wrong = " or a ".join(name for name in sorted(faults) if not truth[name])
    need(not wrong, f"no row has a {wrong}. {again}")
    need(len(faults) == sum(truth.values()), f"there is more. {again}")
    return f"{' and '.join(sorted(faults))}. The loss would have fallen anyway."


@check
def steps_of_an_epoch(steps_taken: int, *, model, rows: list, batch_size: int, accumulation: int, devices: int) -> str:
    """Optimizer steps of one epoch if this many GPUs are visible; the Trainer of transformers runs it."""
    truth = fit_with_trainer(model, rows, batch_size, devices, accumulation).state.global_step
    mistakes = {
        math.ceil(len(rows) / batch_size): "that is without accumulation and on one device.",
        math.ceil(len(rows) / batch_size / accumulation): "that is on one device, or without accumulation.",
    }
    expect(steps_taken, truth, f"not {steps_taken}. How many rows does one optimizer step take in all?", mistakes)
    return f"{truth} steps of up to {batch_size * accumulation * devices} rows, on {len(rows)} rows."
