"""One training path for every method: ``train(settings, data) -> Trained``.

Rows come tokenized from helpers.data, in the order helpers.data fixes; what differs between full fine-tuning and the
adapters is the model that is handed to the trainer (helpers.engine.trainer), nothing else.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from helpers import guards, records
from helpers.batches import training_order
from helpers.data import IGNORED, Data, fingerprint
from helpers.device import MemoryMonitor, free_memory, quiet
from helpers.engine import distributed, preflight
from helpers.engine.checkpoints import Checkpoint, Checkpoints, conditions, size
from helpers.engine.preflight import TrainingError
from helpers.engine.trainer import Steps, collator, fast, keeps_checkpoints, make_trainer
from helpers.engine.updates import weight_updates
from helpers.evaluation import evaluate, held_out_loss
from helpers.inference import logits, save_model
from helpers.models import (
    Plan,
    folder_sizes,
    load_adapter,
    load_base,
    load_tokenizer,
    plan,
    save_adapter,
    save_start,
    split_base,
    to_train,
)
from helpers.settings import Settings
from helpers.sources.base_models import base_fingerprint, base_folder, revision_of

import torch
from peft import PeftConfig
from transformers import TrainerCallback, set_seed


@dataclass
class Trained:
    """A finished training: the model as it was saved, its tokenizer, and the record, not yet saved."""

    model: torch.nn.Module
    tokenizer: object
    record: records.RunRecord
    folder: Path


def _tensorboard(settings: Settings) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter  # slow, and only needed here
    from transformers.integrations import TensorBoardCallback

    folder = settings.series_folder / "tensorboard" / settings.folder.name
    shutil.rmtree(folder, ignore_errors=True)  # events of an earlier run would be drawn into the same curve
    return TensorBoardCallback(SummaryWriter(folder))


def train(
    settings: Settings,
    data: Data,
    adapter: PeftConfig | None = None,
    model: torch.nn.Module | None = None,
    resume: bool = True,
) -> Trained:
    """Fine-tune the base model of the settings, prove what was trained, and save the result.

    Where helpers.engine.launch started several processes, each of them calls this with the same settings. The rows of each
    step are those of one device, dealt out; the main process saves.

    Args:
        settings: method, data order, optimisation.
        data: the encoded splits.
        adapter: the PEFT configuration; by default that of the method.
        model: a model to start from instead of a fresh load. It must equal the base in its files.
        resume: whether to go on from the newest whole checkpoint of an unfinished run with the same settings. There
            are checkpoints where ``save_steps`` is not 0 and one process trains.

    Returns:
        The model as saved (a full model in the precision of the arithmetic, an adapter on its base), and a record
        that lacks only the evaluation. In other processes than the main one: no model, and a record without results.

    Raises:
        GuardError: if the run is not what its name says.
        TrainingError: if the loss is not finite, the device or the disk has too little room, or the checkpoints found
            are those of other settings.
    """
    record, started = records.begin(settings), time.perf_counter()
    tokenizer, folder, order = load_tokenizer(settings), settings.folder, training_order(data, settings)
    rows = [row for batch in order for row in batch]
    longest = max(len(row.input_ids) for row in rows)
    if settings.batch_tokens and longest > settings.batch_tokens:
        raise TrainingError(
            f"the longest row has {longest} tokens, more than batch_tokens = {settings.batch_tokens}: rows are never cut, "
            "so raise batch_tokens or lower max_length"
        )
    free_memory()
    ours = plan(settings, longest)
    preflight.device_memory(ours)
    batches = collator(settings, ours, tokenizer, longest)
    dealt, processes = distributed.deal(order, settings), distributed.processes()
    checkpoints = Checkpoints(folder, conditions(settings, rows, ours, adapter))
    start = checkpoints.begin(resume and processes == 1) if distributed.is_main() else None
    distributed.wait()

    with MemoryMonitor(ours.device) as monitor, preflight.explaining_memory(ours):
        loading = time.perf_counter()
        model, checks = _load(model, settings, data, tokenizer, ours, adapter)
        trainable, total = guards.count(model)
        watch = guards.WeightWatch(model)
        loading = time.perf_counter() - loading
        validation = [held_out_loss(model, data.validation)["loss"]] if data.validation else []
        distributed.reshard(model)
        free_memory()

        with _progress(settings, start) as progress, quiet(), fast(model, ours):
            steps = Steps(monitor, progress, start)
            callbacks = [steps] + ([_tensorboard(settings)] if settings.report_to == "tensorboard" else [])
            trainer = make_trainer(model, settings, ours, dealt, tokenizer, batches, folder, callbacks)
            trainer.monitor, trainer.checkpoints, trainer.log_of = monitor, checkpoints, steps
            checks.append(guards.one_device(trainer.args.n_gpu, ours.device, processes))
            batch = next(iter(trainer.get_train_dataloader()))
            checks.append(guards.batch_is_supervised(batch, dealt[distributed.rank()], tokenizer))
            trainer.train(resume_from_checkpoint=str(start.folder) if start else None)
            seconds = steps.elapsed()
        monitor.mark("save")
        memory = monitor.result()
        exact = trainer.exact_weights()
        del trainer
        moved, share = watch.check(model, exact)
        checks += moved
        if processes > 1:
            checks.append(guards.spread(model, settings, steps.held))
        ranks = distributed.gather({"device": ours.device.name, "peak": memory["peak"], **steps.held})
        if distributed.sharded(settings):
            exact, model = distributed.whole(exact, model), None
        distributed.part()
        if not distributed.is_main():
            return Trained(None, tokenizer, record, folder)
        if model is None:
            free_memory()
            model = ours.load(settings)
            model.load_state_dict(exact, strict=False)  # a tied head has no weight of its own
        if settings.method == "pissa":  # saved as a plain LoRA on the untouched base, and so it is evaluated
            exact, row = None, torch.tensor([data.train[0].input_ids], device=model.device)
            trained = logits(model, row)
            _save(model, settings, tokenizer)
            del model
            model = load_adapter(ours.load(settings), settings, folder / "adapter")
            checks.append(guards.saved_is_trained(trained, logits(model, row)))
        update = weight_updates(model, base_folder(settings), 3 if ours.shape.hidden <= 1024 else 1, exact)
        del watch, exact
        if settings.method != "pissa":
            _save(model, settings, tokenizer)
    if data.validation:
        validation.append(held_out_loss(model, data.validation)["loss"])
    free_memory()

    tokens = sum(len(row.input_ids) for row in rows)
    _describe(record, settings, ours, data)
    record.data["order"] = fingerprint(rows)
    record.guards = [check.to_dict() for check in checks]
    record.steps, record.update = steps.steps, update
    record.training = {
        "trainable": trainable, "total": total, "tokens": tokens,
        "supervised_tokens": sum(label != IGNORED for row in rows for label in row.labels),
        "padded_tokens": batches.tokens(dealt), "load_seconds": loading, "train_seconds": seconds,
        "tokens_per_second": tokens / seconds, "changed_share": share, "validation_loss": validation,
        "devices_visible": ours.device.count, "processes": processes, "seconds": time.perf_counter() - started,
        "resumed_from": start.step if start else None, "passed_over": checkpoints.passed_over,
    }  # fmt: skip
    record.memory = memory | {"predicted": ours.predicted.to_dict(), "ranks": ranks}
    record.files = {n: b for n, b in folder_sizes(folder).items() if not n.startswith(records.CHECKPOINTS)}
    return Trained(model, tokenizer, record, folder)


def _load(given, settings: Settings, data: Data, tokenizer, ours: Plan, adapter) -> tuple[torch.nn.Module, list]:
    """The model as it is trained, fresh or proven to be, and the guards that held on the way."""
    model = given or ours.load(settings)
    checks = guards.tokens_are_sound(data, tokenizer, model.get_input_embeddings().num_embeddings)
    if given is not None:
        checks.append(guards.is_fresh(model, load_base(settings.change(method="full"), "fp32")))
    set_seed(settings.seed)
    model = to_train(model, settings, ours.value("precision"), adapter)
    if settings.method == "pissa":
        split_base(model, base_folder(settings))
        checks.append(guards.splits_the_base(model, base_folder(settings)))
        if distributed.is_main():
            save_start(model, settings.folder / "start")
    if keeps_checkpoints(settings):  # the newest is written before the one before it is removed
        preflight.disk_space(settings.folder, 2 * size(model), "two checkpoints")
    return model, checks + guards.trains_what_it_says(model, settings)


def _progress(settings: Settings, start: Checkpoint | None):
    from tqdm import tqdm  # the plain bar: its text survives in a saved notebook

    devices = distributed.processes()
    return tqdm(total=settings.max_steps, initial=start.step if start else 0, unit="step", mininterval=2, ncols=88,
                desc=f"{settings.method} on {devices} device{'s' * (devices > 1)}", file=sys.stdout,
                disable=not distributed.is_main())  # fmt: skip


def _save(model, settings: Settings, tokenizer) -> None:
    """The result as files: a whole model, or an adapter."""
    folder = settings.folder
    if settings.method == "full":
        with preflight.whole(folder / "model"):
            save_model(model, tokenizer, folder / "model", "100MB" if guards.count(model)[1] < 1e9 else "5GB")
        return
    start = folder / "start" if settings.method == "pissa" else None
    with preflight.whole(folder / "adapter"):
        save_adapter(model, settings, folder / "adapter", start)
    if start:
        shutil.rmtree(start)


def measure_base(settings: Settings, data: Data) -> Trained:
    """Load the untouched base and evaluate it: the row that every method is compared with.

    Returns:
        The base model, its tokenizer and a record with the evaluation filled in, not yet saved.
    """
    record, tokenizer, ours = records.begin(settings, "base"), load_tokenizer(settings), plan(settings)
    model = ours.load(settings.change(method="lora"))
    guards.tokens_are_sound(data, tokenizer, model.get_input_embeddings().num_embeddings)
    _describe(record, settings, ours, data)
    record.evaluation = evaluate(model, tokenizer, data, settings)
    return Trained(model, tokenizer, record, settings.series_folder / f"base-s{settings.seed}")


def _describe(record: records.RunRecord, settings: Settings, ours: Plan, data: Data) -> None:
    record.device, record.decisions, record.data = ours.device.to_dict(), ours.decisions, data.summary()
    record.model = {
        "source": settings.model, "revision": revision_of(settings), "parameters": ours.shape.parameters,
        "fingerprint": base_fingerprint(base_folder(settings)),
    }  # fmt: skip
