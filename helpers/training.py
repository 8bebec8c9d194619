"""One training path for every method, through TRL's SFTTrainer: ``train(settings, data) -> Trained``.

The only module that imports trl. Rows come tokenized from helpers.data, in the order helpers.data fixes; what differs
between full fine-tuning and the adapters is the model that is handed to the trainer, nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from helpers import attention, distributed, guards, preflight, records
from helpers.batches import Collator, training_order
from helpers.checkpoints import Checkpoint, Checkpoints, conditions, load_trained, save_trained, size
from helpers.data import IGNORED, Data, fingerprint
from helpers.device import MemoryMonitor, free_memory, quiet
from helpers.evaluation import evaluate, held_out_loss
from helpers.inference import logits, save_model
from helpers.loss import supervise
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
from helpers.optimizer import AdamW
from helpers.preflight import TrainingError
from helpers.settings import Settings
from helpers.sources import base_fingerprint, base_folder, revision_of
from helpers.updates import weight_updates

import torch
from datasets import Dataset
from peft import AdaLoraModel, PeftConfig, PeftModel
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer


@dataclass
class Trained:
    """A finished training: the model as it was saved, its tokenizer, and the record, not yet saved."""

    model: torch.nn.Module
    tokenizer: object
    record: records.RunRecord
    folder: Path


class Trainer(SFTTrainer):
    """SFTTrainer with this project's loss, optimizer and phase marks; what to train on comes collated.

    TRL's own loss would run the output head on every token, and in fp32 off the GPU. The value is the same.
    """

    monitor: MemoryMonitor | None = None
    checkpoints: Checkpoints | None = None
    log_of: Steps | None = None

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.remove_callback(PrinterCallback)  # helpers.training.Steps draws one line instead
        supervise(self.model)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.monitor:
            self.monitor.mark("forward")
        if torch.is_tensor(num_items_in_batch):  # a sharded model casts floats that it is given to bf16: 299 to 300
            num_items_in_batch = num_items_in_batch.long()
        loss = model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]
        loss = loss * distributed.processes()  # whose gradients are averaged, though the tokens are counted over all
        if self.monitor:
            self.monitor.mark("backward")
        return loss

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        return AdamW, {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}

    def exact_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights by name, before rounding: the fp32 masters where the optimizer keeps any."""
        states = getattr(self.optimizer, "optimizer", self.optimizer).state
        return {n: states[p].get("master", p.detach()) for n, p in self.model.named_parameters() if p.requires_grad}

    def _save_checkpoint(self, model, trial):
        self.monitor.mark("save")
        begun = time.perf_counter()
        with self.checkpoints.saving(self.model, self.log_of.steps, self.log_of.elapsed()):
            super(SFTTrainer, self)._save_checkpoint(model, trial)  # past TRL's own, which adds a model card each time
        self.log_of.start += time.perf_counter() - begun  # saving is no training: speeds are compared without it

    def _save(self, output_dir=None, state_dict=None):
        save_trained(self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        load_trained(self.model, Path(resume_from_checkpoint))


class Steps(TrainerCallback):
    """Keeps every step's figures, draws the progress line, marks phases, and stops at a loss that is not finite."""

    def __init__(self, monitor: MemoryMonitor, progress, since: Checkpoint | None):
        self.monitor, self.progress = monitor, progress
        self.steps: list[dict] = since.steps if since else []
        self.before = since.seconds if since else 0.0
        self.held: dict = {}

    def on_train_begin(self, args, state, control, **_):
        self.start = time.perf_counter() - self.before

    def elapsed(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return time.perf_counter() - self.start

    def on_pre_optimizer_step(self, args, state, control, **_):
        self.monitor.mark("step")

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **_):
        self.held = self.held or distributed.held(model, optimizer)
        if isinstance(getattr(model, "base_model", None), AdaLoraModel):  # it moves ranks to where they help most
            model.base_model.update_and_allocate(state.global_step + 1)
            for name, weight in model.named_parameters():
                if "lora_E" in name:
                    getattr(optimizer, "optimizer", optimizer).follow(weight)

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in logs:
            return
        entry = {"step": state.global_step, "loss": logs["loss"], "grad_norm": logs.get("grad_norm"),
                 "learning_rate": logs.get("learning_rate"), "seconds": self.elapsed()}  # fmt: skip
        for name in ("loss", "grad_norm"):
            if entry[name] is not None and not torch.isfinite(torch.tensor(entry[name])):
                raise TrainingError(
                    f"the {name} at step {state.global_step} is {entry[name]}: training stopped, nothing was saved; "
                    "lower learning_rate, or set precision to 'fp32' to see whether the arithmetic is at fault"
                )
        self.steps.append(entry)
        self.progress.update(1)
        self.progress.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)


def keeps_checkpoints(settings: Settings) -> bool:
    """A run that ends before its first checkpoint is due keeps none; nor does one of several processes."""
    return 0 < settings.save_steps < settings.max_steps and distributed.processes() == 1


def _arguments(settings: Settings, folder: Path, ours: Plan) -> SFTConfig:
    _, accumulation = distributed.share(settings)
    keeps = keeps_checkpoints(settings)
    arguments = SFTConfig(
        output_dir=str(folder / records.CHECKPOINTS), max_steps=settings.max_steps, seed=settings.seed,
        per_device_train_batch_size=1, gradient_accumulation_steps=accumulation,  # one micro-batch of rows
        ddp_find_unused_parameters=False,  # every adapter weight is used in every step
        learning_rate=settings.learning_rate, lr_scheduler_type=settings.schedule,
        warmup_steps=min(settings.warmup_steps, max(settings.max_steps // 4, 1)) if settings.warmup_steps else 0,
        weight_decay=settings.weight_decay, max_grad_norm=settings.max_grad_norm,
        bf16=False, fp16=False,  # no autocast: the weights are in the precision of the arithmetic already
        use_cpu=ours.device.kind == "cpu", gradient_checkpointing=ours.value("checkpointing"),
        max_length=None, shuffle_dataset=False, train_sampling_strategy="sequential", remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True}, logging_steps=1, logging_nan_inf_filter=False,
        save_strategy="steps" if keeps else "no", save_steps=settings.save_steps or 1, save_total_limit=2,
        report_to="none", disable_tqdm=True, dataloader_pin_memory=ours.device.kind != "cpu",
    )  # fmt: skip
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one device a process, never a hidden DataParallel
    return arguments


def collator(settings: Settings, ours: Plan, tokenizer, longest: int) -> Collator:
    """How the rows of a micro-batch are laid out for the attention that was chosen."""
    flat = ours.value("attention") == attention.NAME or settings.batch_tokens is not None
    # few shapes: oneDNN keeps a kernel for each on a CPU, torch.compile makes its kernels anew for each
    multiple = settings.batch_tokens or (8 if ours.device.kind == "cpu" else 1)
    return Collator(flat, tokenizer.pad_token_id, multiple, longest)


def make_trainer(model, settings, ours: Plan, order, tokenizer, batches: Collator, folder: Path, callbacks) -> Trainer:
    """The trainer of a run: ``order`` is a list of micro-batches of rows, ``batches`` lays them out."""
    rows = [[{"input_ids": row.input_ids, "labels": row.labels} for row in batch] for batch in order]
    return Trainer(
        model=model, args=_arguments(settings, folder, ours), train_dataset=Dataset.from_dict({"rows": rows}),
        data_collator=batches, processing_class=tokenizer, callbacks=callbacks,
    )  # fmt: skip


@contextlib.contextmanager
def fast(model, ours: Plan):
    """The chosen kernels in place while the model trains, and transformers' own again afterwards."""
    usual = model.config._attn_implementation
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    code = vars(sys.modules[type(base).__module__])
    plain = dict(code)
    if ours.value("kernels") == "liger":
        logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it tells of each backend that is not there
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(base, cross_entropy=False, fused_linear_cross_entropy=False)
    layers = base.get_decoder().layers if ours.value("compile") else []
    try:
        if ours.value("attention") == attention.NAME:
            model.set_attn_implementation(attention.NAME)
        for layer in layers:
            layer.compile()
        yield
    finally:
        model.set_attn_implementation(usual)
        code.update(plain)  # Liger replaces classes and functions for every model that is made after
        for layer in layers:
            layer._compiled_call_impl = None


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

    Where helpers.launch started several processes, each of them calls this with the same settings. The rows of each
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
    from tqdm import tqdm  # the plain bar: its text survives in a saved notebook

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
        load = time.perf_counter()
        given, model = model, model or ours.load(settings)
        checks = guards.tokens_are_sound(data, tokenizer, model.get_input_embeddings().num_embeddings)
        if given is not None:
            checks.append(guards.is_fresh(model, load_base(settings.change(method="full"), "fp32")))
        set_seed(settings.seed)
        model = to_train(model, settings, ours.value("precision"), adapter)
        if settings.method == "pissa":
            split_base(model, base_folder(settings))
            checks.append(guards.splits_the_base(model, base_folder(settings)))
            if distributed.is_main():
                save_start(model, folder / "start")
        checks += guards.trains_what_it_says(model, settings)
        trainable, total = guards.count(model)
        if keeps_checkpoints(settings):  # the newest is written before the one before it is removed
            preflight.disk_space(folder, 2 * size(model), "two checkpoints")
        watch = guards.WeightWatch(model)
        load = time.perf_counter() - load
        validation = [held_out_loss(model, data.validation)["loss"]] if data.validation else []
        distributed.reshard(model)
        free_memory()

        progress = tqdm(total=settings.max_steps, initial=start.step if start else 0, desc=settings.method, unit="step",
                        mininterval=2, ncols=88, file=sys.stdout, disable=not distributed.is_main())  # fmt: skip
        steps = Steps(monitor, progress, start)
        with quiet(), fast(model, ours):
            callbacks = [steps] + ([_tensorboard(settings)] if settings.report_to == "tensorboard" else [])
            trainer = make_trainer(model, settings, ours, dealt, tokenizer, batches, folder, callbacks)
            trainer.monitor, trainer.checkpoints, trainer.log_of = monitor, checkpoints, steps
            checks.append(guards.one_device(trainer.args.n_gpu, ours.device, processes))
            batch = next(iter(trainer.get_train_dataloader()))
            checks.append(guards.batch_is_supervised(batch, dealt[distributed.rank()], tokenizer))
            try:
                trainer.train(resume_from_checkpoint=str(start.folder) if start else None)
            finally:
                progress.close()
            seconds = steps.elapsed()
        monitor.mark("save")
        memory = monitor.result()
        exact = trainer.exact_weights()
        moved, share = watch.check(model, exact)
        checks += moved
        if processes > 1:
            checks.append(guards.spread(model, settings, steps.held))
        ranks = distributed.gather({"device": ours.device.name, "peak": memory["peak"], **steps.held})
        if distributed.sharded(settings):
            exact, model = distributed.whole(exact, model), None
        del trainer
        distributed.part()
        if not distributed.is_main():
            return Trained(None, tokenizer, record, folder)
        if model is None:
            free_memory()
            model = ours.load(settings)
            model.load_state_dict(exact, strict=False)  # a tied head has no weight of its own
        if settings.method == "pissa":  # saved as a plain LoRA on the untouched base, and so it is evaluated
            row, exact = torch.tensor([data.train[0].input_ids], device=model.device), None
            trained_logits = logits(model, row)
            with preflight.whole(folder / "adapter"):
                save_adapter(model, settings, folder / "adapter", folder / "start")
            del model
            model = load_adapter(ours.load(settings), settings, folder / "adapter")
            checks.append(guards.saved_is_trained(trained_logits, logits(model, row)))
            shutil.rmtree(folder / "start")
        update = weight_updates(model, base_folder(settings), 3 if ours.shape.hidden <= 1024 else 1, exact)
        del watch, exact
        if settings.method == "full":
            with preflight.whole(folder / "model"):
                save_model(model, tokenizer, folder / "model", "100MB" if total < 1e9 else "5GB")
        elif settings.method != "pissa":
            with preflight.whole(folder / "adapter"):
                save_adapter(model, settings, folder / "adapter")
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
        "padded_tokens": batches.tokens(dealt), "load_seconds": load, "train_seconds": seconds,
        "tokens_per_second": tokens / seconds, "changed_share": share, "validation_loss": validation,
        "devices_visible": ours.device.count, "processes": processes, "seconds": time.perf_counter() - started,
        "resumed_from": start.step if start else None, "passed_over": checkpoints.passed_over,
    }  # fmt: skip
    record.memory = memory | {"predicted": ours.predicted.to_dict(), "ranks": ranks}
    record.files = {n: b for n, b in folder_sizes(folder).items() if not n.startswith(records.CHECKPOINTS)}
    return Trained(model, tokenizer, record, folder)


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
