"""What the scenes of 10_spot_the_bug share: the tiny model, batches, a training loop, and how to look at the result."""

from __future__ import annotations

import random
import tempfile
import textwrap
from dataclasses import replace

from helpers.data import Data, Example
from helpers.device import Device
from helpers.guards import GuardError
from helpers.models import load_base
from helpers.settings import IGNORED, Settings
from helpers.sources import DataError, quiet, resolve

import torch
from datasets import Dataset
from matplotlib.axes import Axes
from torch.nn.utils.rnn import pad_sequence
from transformers import PrinterCallback, Trainer, TrainingArguments


def fresh(tiny: Settings, dtype: torch.dtype = torch.float32):
    """The tiny model from its files, trained nowhere."""
    return load_base(resolve(tiny), "fp32").to(dtype)


def one_family(data: Data, family: str) -> Data:
    """The rows of one family of questions, which the tiny model learns in a second."""
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return replace(data, **{name: [e for e in rows if e.family == family] for name, rows in splits.items()})


def batches(rows: list[Example], size: int = 8) -> list[dict[str, torch.Tensor]]:
    """The rows as padded batches: ``input_ids``, ``labels`` and ``attention_mask``, each of shape (rows, longest)."""
    return [collate([vars(row) for row in rows[start : start + size]]) for start in range(0, len(rows), size)]


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """One padded batch of rows with ``input_ids`` and ``labels``."""
    ids, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    padded = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    return {"input_ids": pad_sequence(ids, batch_first=True), "labels": padded, "attention_mask": mask}


def fit(model, steps: list, rate: float = 1e-2) -> list[float]:
    """One step of AdamW on each batch, at a rate that falls to zero; the loss of each batch, before its step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    losses = []
    for number, batch in enumerate(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - number / len(steps))
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


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


def endings(model, tokenizer, examples: list[Example], limit: int = 60) -> list[dict]:
    """A greedy answer to each question: how many tokens it took, what stopped it, and how it ends."""
    answers, template = [], {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
    for example in examples:
        inputs = tokenizer.apply_chat_template(example.prompt, **template)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        new = out[0, inputs["input_ids"].shape[1] :].tolist()
        stop = tokenizer.eos_token if new[-1] == tokenizer.eos_token_id else "the limit"
        answer = {"new tokens": len(new), "stopped by": stop, "ends in": tokenizer.decode(new)[-60:]}
        answers.append({"question": example.prompt[-1]["content"]} | answer)
    return answers


def draw(curves: dict[str, list[float]], axes: Axes) -> Axes:
    """Training loss by step, one line per run; lines differ in colour, dash and width, so that one shows under another."""
    styles = (("#0072B2", "-", 5), ("#D55E00", "--", 2.5), ("#009E73", ":", 2.5))
    for (name, losses), (colour, dash, width) in zip(curves.items(), styles, strict=False):
        axes.plot(range(1, len(losses) + 1), losses, color=colour, linestyle=dash, linewidth=width, label=name)
    axes.set(xlabel="step", ylabel="training loss, nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    return axes


def one_device(used: int, device: Device) -> None:
    """Refuse a trainer that would split each batch over several devices (a hidden DataParallel).

    Raises:
        GuardError: says how many.
    """
    if used > 1:
        split = f"the trainer would split each batch over {used} devices, not use {device.name} alone"
        raise GuardError(f"one device: {split}")


def ask(guard, *arguments) -> None:
    """Ask a guard, and print what it says."""
    try:
        guard(*arguments)
        print("The guard has no objection.")
    except (GuardError, DataError) as error:
        print(textwrap.fill(f"{type(error).__name__}: {error}", 100))


FAULTS = ("doubled start", "masked end", "leaked test")


def case(data: Data, tokenizer, seed: int) -> Data:
    """A data set with two of the three :data:`FAULTS`, chosen by the seed."""
    rng = random.Random(seed)
    train = [replace(e) for e in data.train]
    for fault in rng.sample(FAULTS, 2):
        for number in rng.sample(range(len(train)), 3):
            row = train[number]
            if fault == "doubled start":
                ids, labels = [tokenizer.bos_token_id, *row.input_ids], [IGNORED, *row.labels]
                train[number] = replace(row, input_ids=ids, labels=labels)
            elif fault == "masked end":
                labels = [IGNORED if label == tokenizer.eos_token_id else label for label in row.labels]
                train[number] = replace(row, labels=labels)
            else:
                train[number] = replace(rng.choice(data.test))
    return replace(data, train=train)
