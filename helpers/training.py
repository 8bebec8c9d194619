"""One training path for every method: ``train(settings, data) -> Trained``.

Rows come tokenized from helpers.data, in the order helpers.batches fixes. What differs between full fine-tuning and the
adapters is the model that is handed to the trainer (helpers.engine.trainer), nothing else.

``notebooks/cluster/train.py`` trains without a notebook, on one device or several.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers import guards, records
from helpers.batches import Collator, deal, training_order, widest
from helpers.data import Data, fingerprint
from helpers.device import Plan, World, plan
from helpers.engine import distributed, preflight
from helpers.engine.checkpoints import Checkpoint, Checkpoints, conditions
from helpers.engine.locks import locked
from helpers.engine.monitor import MemoryMonitor
from helpers.engine.paths import compared
from helpers.engine.preflight import Stopped, TrainingError
from helpers.engine.trainer import Steps, collator, fast, keeps_checkpoints, make_trainer
from helpers.engine.updates import weight_updates
from helpers.evaluation import baselines, evaluate, held_out_loss
from helpers.memory import free_memory
from helpers.models import folder_sizes, load_base, load_tokenizer, save_adapter, save_model, to_train
from helpers.settings import AFTER_SFT, IGNORED, Settings
from helpers.sources import Base, check_replaceable, quiet, resolve

import torch
from peft import PeftConfig
from tqdm import tqdm  # the plain bar: its text survives in a saved notebook
from transformers import set_seed


@dataclass
class Trained:
    """A finished training: the model as it was saved, its tokenizer, and the record, not yet saved."""

    model: torch.nn.Module | None
    tokenizer: object
    record: records.RunRecord
    folder: Path


@dataclass
class Run:
    """What the phases of one training hand to each other."""

    settings: Settings
    data: Data
    base: Base
    adapter: PeftConfig | None
    started: float
    record: records.RunRecord
    tokenizer: object
    order: list  # the micro-batches of this run, divided among the processes
    rows: list  # all rows in their order
    sizes: dict  # of rows and processes, for the plan
    plan: Plan
    batches: Collator
    checkpoints: Checkpoints | None = None
    resumed: Checkpoint | None = None
    model: torch.nn.Module | None = None
    watch: guards.WeightWatch | None = None
    exact: dict = field(default_factory=dict)  # the trained weights, before rounding
    checks: list = field(default_factory=list)
    steps: Steps | None = None
    facts: dict = field(default_factory=lambda: {"validation_loss": []})  # for record.training
    ranks: list = field(default_factory=list)  # what each process held


def train(
    settings: Settings,
    data: Data,
    adapter: PeftConfig | None = None,
    model: torch.nn.Module | None = None,
    resume: bool = True,
    world: World | None = None,
) -> Trained:
    """Fine-tune the base model of the settings, prove what was trained, and save the result.

    Where several processes train together, each of them calls this with the same settings. The rows of each step are
    those of one device, divided among them; the main process saves.

    Args:
        settings: method, data order, optimisation.
        data: the encoded splits.
        adapter: the PEFT configuration; by default that of the method.
        model: a model to start from instead of a fresh load. It must equal the base in its files.
        resume: whether to resume from the newest whole checkpoint of an unfinished run with the same settings. There are
            checkpoints where ``save_steps`` is not 0 and one process trains.
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
    run = _plan(settings, data, adapter, world or World())
    with locked(settings.folder, TrainingError) if run.plan.world.main else nullcontext():
        _carry_out(run, model, resume)
    if run.plan.world.main:
        _describe_result(run)
    return Trained(run.model, run.tokenizer, run.record, settings.folder)


def _carry_out(run: Run, model: torch.nn.Module | None, resume: bool) -> None:
    """Load, fit, prove, save. The stop button leaves nothing of this training in memory."""
    try:
        with MemoryMonitor(run.plan.device) as monitor, preflight.explaining_memory(run.plan):
            _load(run, model)
            _prove_path(run, monitor, resume)
            _fit(run, monitor)
            _prove(run, monitor.result())
            if run.plan.world.main:
                _save(run)
    except KeyboardInterrupt as pressed:
        done, newest = len(run.steps.steps) if run.steps else 0, run.checkpoints and run.checkpoints.newest_step()
        traceback.clear_frames(pressed.__traceback__)  # otherwise IPython keeps what they hold
        run.model = run.steps = run.watch = model = None
        raise Stopped(done, run.settings.max_steps, newest) from None


def _plan(settings: Settings, data: Data, adapter: PeftConfig | None, world: World) -> Run:
    """Fix rows, order and the use of this machine, and refuse what cannot work, before anything is loaded."""
    if settings.method in AFTER_SFT:
        raise TrainingError(f"train does supervised fine-tuning only; 11_after_sft shows {settings.method} with TRL")
    started, record, base = time.perf_counter(), records.begin(settings), resolve(settings)
    tokenizer, order = load_tokenizer(base), training_order(data, settings)
    base.require_positions(data.rows)
    rows = [row for batch in order for row in batch]
    longest = max(len(row.input_ids) for row in rows)
    if settings.batch_tokens and longest > settings.batch_tokens:
        raise TrainingError(
            f"the longest row has {longest} tokens, more than batch_tokens = {settings.batch_tokens}: rows are never cut, "
            "so raise batch_tokens or lower max_length"
        )
    order = deal(order, settings, world.size)
    sizes = {"longest": longest, "world": world, "widest": widest(order, settings)}
    free_memory()
    chosen = plan(settings, base.shape, **sizes)
    written: list[Path] = []
    with suppress(records.RecordError):  # there is no finished run
        written = [Path(name) for name in records.load(settings.folder).files]
    check_replaceable(settings.folder / _result(settings), tuple(file.name for file in written))
    preflight.fp8_runs(chosen, settings.method)
    preflight.device_memory(chosen)
    if chosen.device.count > world.size:
        print(f"{chosen.device.count} devices are visible; this run uses {chosen.device.torch_name}")
    batches = collator(settings, chosen, tokenizer, order)
    return Run(settings, data, base, adapter, started, record, tokenizer, order, rows, sizes, chosen, batches)


def _prove_path(run: Run, monitor: MemoryMonitor, resume: bool) -> None:
    """Compare the planned path with the model's own forward pass, plan again with what came out, and look for checkpoints."""
    settings, world = run.settings, run.plan.world
    monitor.mark("compare")
    proven, silent = compared(run.model, run.plan, run.rows, run.batches, run.base.name)
    monitor.mark("load")
    run.watch.forget(silent)
    if proven["loss"]["value"] == "stock":
        run.plan = replace(plan(settings, run.base.shape, **run.sizes, proven=proven), device=run.plan.device)
        preflight.device_memory(run.plan)
        run.batches = collator(settings, run.plan, run.tokenizer, run.order)
    run.plan.decisions.update(proven)
    given = conditions(settings, run.base, fingerprint(run.rows), run.plan, run.adapter)
    run.checkpoints = Checkpoints(settings.folder, given)
    run.resumed = run.checkpoints.begin(resume and world.size == 1) if world.main else None
    if run.data.validation:
        run.facts["validation_loss"] = [held_out_loss(run.model, run.data.validation)["loss"]]
    distributed.reshard(run.model)
    distributed.wait()


def _load(run: Run, given: torch.nn.Module | None) -> None:
    """The model as it is trained, fresh or proven to be, and the guards that hold before training."""
    settings, loading = run.settings, time.perf_counter()
    world = run.plan.world if run.plan.sharded else None
    model = given or load_base(run.base, **run.plan.loading, four_bit=settings.method == "qlora", world=world)
    run.checks += guards.tokens_are_sound(run.data, run.tokenizer, model.get_input_embeddings().num_embeddings)
    if given is not None:
        run.checks.append(guards.is_fresh(model, load_base(run.base, "fp32")))
    set_seed(settings.seed)
    run.model = to_train(model, settings, run.plan.value("precision"), run.adapter)
    if keeps_checkpoints(settings, run.plan.world.size):
        preflight.disk_space(run.model, settings.folder)
    run.checks += guards.trains_what_it_says(run.model, settings)
    trainable, total = guards.count(run.model)
    run.facts |= {"trainable": trainable, "total": total}
    run.watch = guards.WeightWatch(run.model)
    run.facts["load_seconds"] = time.perf_counter() - loading
    distributed.reshard(run.model)
    free_memory()


def _fit(run: Run, monitor: MemoryMonitor) -> None:
    """All optimizer steps, with TRL's trainer."""
    settings, world = run.settings, run.plan.world
    name = f"{settings.method} on {world.size} device{'s' * (world.size > 1)}"
    bar = {"desc": name, "unit": "step", "mininterval": 2, "ncols": 88, "file": sys.stdout, "disable": not world.main}
    first = run.resumed.step if run.resumed else 0
    with tqdm(total=settings.max_steps, initial=first, **bar) as progress, quiet(), fast(run.model, run.plan):
        run.steps = Steps(monitor, progress, run.resumed)
        trainer = make_trainer(
            run.model, settings, run.plan, run.order, run.tokenizer, run.batches, run.steps, run.checkpoints
        )
        batch = next(iter(trainer.get_train_dataloader()))
        run.checks.append(guards.batch_is_supervised(batch, run.order[world.rank], run.tokenizer))
        trainer.train(resume_from_checkpoint=str(run.resumed.folder) if run.resumed else None)
        run.facts["train_seconds"] = run.steps.elapsed()
    monitor.mark("save")
    run.exact = trainer.exact_weights()


def _prove(run: Run, memory: dict) -> None:
    """The guards that hold after training, over all processes; then each process works alone."""
    model, world, held = run.model, run.plan.world, run.steps.held
    changed = distributed.gather(run.watch.changed(dict(model.named_parameters()) | run.exact))
    run.checks += run.watch.check(model, changed, sum(step["learning_rate"] > 0 for step in run.steps.steps))
    run.facts["changed_share"] = sum(share for share, _ in changed) / len(changed)
    if run.plan.sharded:
        detail = distributed.held_in_parts(model, held["parameters"], world.size)
        run.checks.append(guards.Guard("each process holds its part", detail))
    elif world.size > 1:
        digests = distributed.gather(guards.digest(model, trainable=True)[0])
        run.checks.append(guards.Guard("all processes agree", distributed.in_agreement(digests)))
    run.ranks = distributed.gather({"device": run.plan.device.name, "peak": memory["peak"], **held})
    run.record.memory = memory | {"predicted": run.plan.predicted.to_dict(), "ranks": run.ranks}
    run.watch = None
    if run.plan.sharded:
        run.exact, run.model = distributed.whole(run.exact, model), None
    distributed.leave()


def _result(settings: Settings) -> str:
    """The name of the folder, inside that of the run, that holds what was trained."""
    return "model" if settings.method == "full" else "adapter"


def _save(run: Run) -> None:
    """The result as files, a whole model or an adapter. An earlier result is replaced only when this one is written."""
    settings = run.settings
    if run.plan.sharded:
        free_memory()
        run.model = load_base(run.base, **run.plan.loading)
        run.model.load_state_dict(run.exact, strict=False)  # a tied head has no weight of its own
    run.record.update = weight_updates(run.model, run.base.folder, 3 if run.base.shape.hidden <= 1024 else 1, run.exact)
    run.exact = {}
    name = _result(settings)
    new = settings.folder / f".new-{name}"
    with preflight.whole(new):
        if settings.method == "full":
            save_model(run.model, run.tokenizer, new, "100MB" if run.facts["total"] < 1e9 else "5GB")
        else:
            save_adapter(run.model, run.base, new)
    (settings.folder / records.FILE_NAME).unlink(missing_ok=True)  # a record must never lie beside another run's files
    shutil.rmtree(settings.folder / name, ignore_errors=True)
    os.replace(new, settings.folder / name)


def _describe_result(run: Run) -> None:
    """Fill in the record: what was trained on, how, how fast, and what was proven."""
    settings, record = run.settings, run.record
    if run.data.validation:
        run.facts["validation_loss"].append(held_out_loss(run.model, run.data.validation)["loss"])
    free_memory()
    _describe_input(record, settings, run.base, run.plan, run.data)
    record.data["order"] = fingerprint(run.rows)
    record.guards = [check.to_dict() for check in run.checks]
    record.steps = run.steps.steps
    tokens = sum(len(row.input_ids) for row in run.rows)
    record.training = run.facts | {
        "tokens": tokens,
        "supervised_tokens": sum(label != IGNORED for row in run.rows for label in row.labels),
        "padded_tokens": run.batches.tokens(run.order),
        "tokens_per_second": tokens / run.facts["train_seconds"],
        "devices_visible": run.plan.device.count,
        "processes": run.plan.world.size,
        "seconds": time.perf_counter() - run.started,
        "resumed_from": run.resumed.step if run.resumed else None,
        "passed_over": run.checkpoints.passed_over,
    }
    record.files = {n: b for n, b in folder_sizes(settings.folder).items() if not n.startswith(records.CHECKPOINTS)}


def _describe_input(record: records.RunRecord, settings: Settings, base: Base, chosen: Plan, data: Data) -> None:
    record.device, record.decisions, record.data = chosen.device.to_dict(), chosen.decisions, data.summary()
    record.model = {
        "source": base.name,
        "revision": base.revision,
        "parameters": base.shape.parameters,
        "fingerprint": base.fingerprint,
    }


def measure_base(settings: Settings, data: Data) -> Trained:
    """Load the untouched base and evaluate it: the row that every method is compared with.

    Returns:
        The base model, its tokenizer and a record with the evaluation filled in, not yet saved.
    """
    record, base = records.begin(settings, "base"), resolve(settings)
    base.require_positions(data.rows)
    chosen, tokenizer = plan(settings, base.shape), load_tokenizer(base)
    model = load_base(base, **chosen.loading)
    guards.tokens_are_sound(data, tokenizer, model.get_input_embeddings().num_embeddings)
    _describe_input(record, settings, base, chosen, data)
    record.evaluation = evaluate(model, tokenizer, data, settings)
    record.evaluation["baselines"] = baselines(model, tokenizer, data, settings) if data.source == "bundled" else None
    return Trained(model, tokenizer, record, settings.series_folder / f"base-s{settings.seed}")
