"""The phases of one training, in the order in which :func:`helpers.training.train` runs them."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from statistics import mean

from helpers import guards, records
from helpers.batches import deal, training_order, widest
from helpers.data import Data, fingerprint
from helpers.device import Plan, World, plan
from helpers.engine import distributed, preflight
from helpers.engine.checkpoints import Checkpoints, conditions
from helpers.engine.locks import locked
from helpers.engine.monitor import MemoryMonitor, energy
from helpers.engine.paths import compared
from helpers.engine.preflight import Stopped, TrainingError
from helpers.engine.spectrum import weight_updates
from helpers.engine.trainer import Steps, collator, fast, keeps_checkpoints, make_trainer
from helpers.evaluation import held_out_loss
from helpers.memory import free_memory
from helpers.models import load_base, load_tokenizer, save_adapter, save_model, to_train
from helpers.settings import AFTER_SFT, IGNORED, Settings
from helpers.sources import MANIFEST, answer_of, check_replaceable, quiet, resolve

import torch
from peft import PeftConfig
from tqdm import tqdm  # the plain bar: its text survives in a saved notebook
from transformers import set_seed


class Run:
    """One training: each phase leaves here what the later ones need."""

    def __init__(self, settings: Settings, data: Data, adapter: PeftConfig | None, world: World):
        """Fix rows, order and the use of this machine, and refuse what cannot work, before anything is loaded."""
        if settings.method in AFTER_SFT:
            raise TrainingError(f"train does supervised fine-tuning only; 11_after_sft shows {settings.method}")
        self.started, self.record, self.base = time.perf_counter(), records.begin(settings), resolve(settings)
        self.settings, self.data, self.adapter, self.world = settings, data, adapter, world
        self.tokenizer, order = load_tokenizer(self.base), training_order(data, settings)
        self.base.require_positions(data.rows)
        self.rows = [row for batch in order for row in batch]
        longest = max(len(row.input_ids) for row in self.rows)
        if settings.batch_tokens and longest > settings.batch_tokens:
            raise TrainingError(
                f"the longest row has {longest} tokens, more than batch_tokens = {settings.batch_tokens}: rows are never "
                "cut, so raise batch_tokens or lower max_length"
            )
        self.order = deal(order, settings, world.size)  # micro-batches, divided among the processes
        self.sizes = {"longest": longest, "world": world, "widest": widest(self.order, settings)}
        self.result = "model" if settings.method == "full" else "adapter"  # the folder of what was trained
        check_replaceable(settings.folder / self.result)
        free_memory()
        chosen = plan(settings, self.base.shape, **self.sizes)
        preflight.fp8_runs(chosen, settings.method)
        if chosen.device.count > world.size:
            print(f"{chosen.device.count} devices are visible; this run uses {chosen.device.torch_name}")
        self.use(chosen)
        self.model = self.watch = self.steps = self.checkpoints = self.resumed = None
        self.checks: list[guards.Guard] = []
        self.facts: dict = {"validation_loss": []}  # for record.training

    def use(self, chosen: Plan) -> None:
        """Lay out the rows as planned, if the device has room for it."""
        preflight.device_memory(chosen)
        self.plan, self.batches = chosen, collator(self.settings, chosen, self.tokenizer, self.order)

    @contextmanager
    def alone(self):
        """No other process trains into this folder; the stop button leaves nothing of this training in memory."""
        with locked(self.settings.folder, TrainingError) if self.world.main else nullcontext():
            try:
                yield
            except KeyboardInterrupt as pressed:
                done = len(self.steps.steps) if self.steps else 0
                newest = self.checkpoints and self.checkpoints.newest_step()
                traceback.clear_frames(pressed.__traceback__)  # otherwise IPython keeps what they hold
                self.model = self.steps = self.watch = None
                raise Stopped(done, self.settings.max_steps, newest) from None

    def load(self, given: torch.nn.Module | None) -> None:
        """The model as it is trained, fresh or proven to be, and the guards that hold before training."""
        settings, loading = self.settings, time.perf_counter()
        world = self.world if self.plan.sharded else None
        model = given or load_base(self.base, **self.plan.loading, four_bit=settings.method == "qlora", world=world)
        vocabulary = model.get_input_embeddings().num_embeddings
        self.checks += guards.tokens_are_sound(self.data, self.tokenizer, vocabulary)
        if given is not None:
            self.checks.append(guards.is_fresh(model, load_base(self.base, "fp32")))
        set_seed(settings.seed)
        self.model = to_train(model, settings, self.plan.value("precision"), self.adapter)
        if keeps_checkpoints(settings, self.world.size):
            preflight.disk_space(self.model, settings.folder)
        self.checks += guards.trains_what_it_says(self.model, settings)
        self.facts["trainable"], self.facts["total"] = guards.count(self.model)
        self.watch = guards.WeightWatch(self.model)
        self.facts["load_seconds"] = time.perf_counter() - loading
        free_memory()

    def choose_path(self, monitor: MemoryMonitor, resume: bool) -> None:
        """Compare the planned path with the model's own forward pass, plan again if they differ, look for checkpoints."""
        settings = self.settings
        monitor.mark("compare")
        proven, silent = compared(self.model, self.plan, self.rows, self.batches, self.base.name)
        monitor.mark("load")
        self.watch.forget(silent)
        if proven["loss"]["value"] == "stock":
            again = plan(settings, self.base.shape, **self.sizes, proven=proven)
            self.use(replace(again, device=self.plan.device))
        self.plan.decisions.update(proven)
        given = conditions(settings, self.base, fingerprint(self.rows), self.plan, self.adapter)
        self.checkpoints = Checkpoints(settings.folder, given)
        self.resumed = self.checkpoints.begin(resume and self.world.size == 1) if self.world.main else None
        if self.data.validation:
            self.facts["validation_loss"] = [held_out_loss(self.model, self.data.validation)["loss"]]
        distributed.reshard(self.model)
        free_memory()
        distributed.wait()

    def fit(self, monitor: MemoryMonitor) -> None:
        """All optimizer steps, with TRL's trainer."""
        settings, size, first = self.settings, self.world.size, self.resumed.step if self.resumed else 0
        name = f"{settings.method} on {size} device{'s' * (size > 1)}"
        bar = {"desc": name, "unit": "step", "mininterval": 2, "ncols": 88, "file": sys.stdout}
        bar |= {"total": settings.max_steps, "initial": first, "disable": not self.world.main}
        with tqdm(**bar) as progress, quiet(), fast(self.model, self.plan):
            self.steps = Steps(monitor, progress, self.resumed)
            trainer = make_trainer(
                self.model, settings, self.plan, self.order, self.tokenizer, self.batches, self.steps, self.checkpoints
            )
            batch = next(iter(trainer.get_train_dataloader()))
            self.checks.append(guards.batch_is_supervised(batch, self.order[self.world.rank], self.tokenizer))
            before = None if self.resumed else energy()
            trainer.train(resume_from_checkpoint=str(self.resumed.folder) if self.resumed else None)
            self.facts["train_seconds"] = self.steps.elapsed()
            after = energy()
            self.joules = None if None in (before, after) else after - before
        monitor.mark("save")
        self.exact = trainer.exact_weights()  # before rounding

    def prove(self, memory: dict) -> None:
        """The guards that hold after training, over all processes; then each process works alone."""
        model, size, held = self.model, self.world.size, self.steps.held
        changed = distributed.gather(self.watch.changed(dict(model.named_parameters()) | self.exact))
        self.checks += self.watch.check(model, changed, sum(step["learning_rate"] > 0 for step in self.steps.steps))
        self.facts["changed_share"] = sum(share for share, _ in changed) / len(changed)
        if self.plan.sharded:
            detail = distributed.held_in_parts(model, held["parameters"], size)
            self.checks.append(guards.Guard("each process holds its part", detail))
        elif size > 1:
            digests = distributed.gather(guards.digest(model, trainable=True)[0])
            self.checks.append(guards.Guard("all processes agree", distributed.in_agreement(digests)))
        own = {"device": self.plan.device.name, "peak": memory["peak"], "energy": self.joules}
        ranks = distributed.gather(own | held)
        spent = [rank["energy"] for rank in ranks]
        self.facts["energy"] = None if None in spent else sum(spent)
        self.record.memory = memory | {"predicted": self.plan.predicted.to_dict(), "ranks": ranks}
        self.watch = None
        if self.plan.sharded:
            self.exact, self.model = distributed.whole(self.exact, model), None
        distributed.leave()

    def save(self) -> None:
        """The result as files, a whole model or an adapter. An earlier result is replaced only when this one is written."""
        if not self.world.main:
            return
        settings, base, place = self.settings, self.base, self.settings.folder / self.result
        if self.plan.sharded:
            free_memory()
            self.model = load_base(base, **self.plan.loading)
            self.model.load_state_dict(self.exact, strict=False)  # a tied head has no weight of its own
        self.record.update = weight_updates(self.model, base.folder, 3 if base.shape.hidden <= 1024 else 1, self.exact)
        self.exact = {}
        new = settings.folder / f".new-{self.result}"
        with preflight.whole(new):
            if settings.method == "full":
                save_model(self.model, self.tokenizer, new, "100MB" if self.facts["total"] < 1e9 else "5GB")
            else:
                save_adapter(self.model, base, new)
        # a record must never lie beside another run's files
        self.facts["manifest"] = {f"{self.result}/{MANIFEST}": records.sha256(new / MANIFEST)}
        (settings.folder / records.FILE_NAME).unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        os.replace(new, place)

    def _scored(self) -> list[float]:
        """For each step, which share of its rows ends in an answer that a machine can check: such rows get another loss."""
        each = len(self.order) // self.settings.max_steps
        steps = (sum(self.order[i : i + each], []) for i in range(0, len(self.order), each))
        return [mean(answer_of(row.reference) is not None for row in rows) for rows in steps]

    def describe(self) -> None:
        """Fill in the record: what was trained on, how, how fast, and what was proven."""
        if not self.world.main:
            return
        settings, record, steps = self.settings, self.record, self.steps
        if self.data.validation:
            self.facts["validation_loss"].append(held_out_loss(self.model, self.data.validation)["loss"])
        free_memory()
        record.describe_input(self.base, self.plan, self.data)
        record.data["order"] = fingerprint(self.rows)
        record.data["scored"] = self._scored()
        record.guards, record.steps = [vars(check) for check in self.checks], steps.steps
        tokens = sum(len(row.input_ids) for row in self.rows)
        record.training = self.facts | {
            "tokens": tokens,
            "supervised_tokens": sum(label != IGNORED for row in self.rows for label in row.labels),
            "padded_tokens": self.batches.tokens(self.order),
            "tokens_per_second": tokens / self.facts["train_seconds"],
            "devices_visible": self.plan.device.count,
            "processes": self.world.size,
            "seconds": time.perf_counter() - self.started,
            "resumed_from": self.resumed.step if self.resumed else None,
            "passed_over": self.checkpoints.passed_over,
        }
        sizes = records.folder_sizes(settings.folder)
        record.files = {name: size for name, size in sizes.items() if not name.startswith(records.CHECKPOINTS)}
