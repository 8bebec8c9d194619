"""TRL's SFTTrainer with this project's loss, optimizer, batches and kernels. The only module of the engine that imports trl."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import time
from pathlib import Path

from helpers.batches import Collator, widest
from helpers.device import Plan
from helpers.engine import attention, distributed
from helpers.engine.checkpoints import Checkpoint, Checkpoints, load_trained_weights, save_trained
from helpers.engine.fp8 import products_in_fp8
from helpers.engine.loss import inner, supervised
from helpers.engine.monitor import MemoryMonitor
from helpers.engine.preflight import TrainingError
from helpers.engine.updates import decoder_blocks
from helpers.optimizer import AdamW
from helpers.records import CHECKPOINTS
from helpers.settings import Settings

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Trainer(SFTTrainer):
    """SFTTrainer with this project's loss, optimizer and phase marks; its rows come collated.

    The loss has the value of TRL's own. It is computed on supervised tokens only, and keeps no logits for the backward pass.
    """

    monitor: MemoryMonitor | None = None
    checkpoints: Checkpoints | None = None
    log_of: Steps | None = None
    processes: int = 1

    def __init__(self, *arguments, **options):
        model = options["model"]
        weights = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        config, before = vars(model.config.get_text_config()), dict(vars(model.config.get_text_config()))
        super().__init__(*arguments, **options)
        config.update(before)  # TRL and transformers change it: the loss of a mixture, the cache, the end token
        for name, p in model.named_parameters():  # TRL rounds an adapter on a 4-bit base to bf16, in an fp32 run too
            p.data = weights.get(name, p.data)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole step
        self.remove_callback(PrinterCallback)  # Steps draws one line instead

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.monitor:
            self.monitor.mark("forward")
        if torch.is_tensor(num_items_in_batch):  # a sharded model casts floats that it is given to bf16: 299 to 300
            num_items_in_batch = num_items_in_batch.long()
        loss = model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]
        loss = loss * self.processes  # their gradients are averaged, though the tokens are counted over all
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
        self.log_of.start += time.perf_counter() - begun  # saving is not training: speeds are compared without it

    def _save(self, output_dir=None, state_dict=None):
        save_trained(self.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        load_trained_weights(self.model, Path(resume_from_checkpoint))


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

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in logs:
            return
        entry = {"step": state.global_step} | {name: logs.get(name) for name in ("loss", "grad_norm", "learning_rate")}
        entry["seconds"] = self.elapsed()
        for name in ("loss", "grad_norm"):
            if entry[name] is not None and not torch.isfinite(torch.tensor(entry[name])):
                raise TrainingError(
                    f"the {name} at step {state.global_step} is {entry[name]}: training stopped, nothing was saved; "
                    "lower learning_rate, or set precision to 'fp32' to see whether the arithmetic is at fault"
                )
        self.steps.append(entry)
        self.progress.update(1)
        self.progress.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)


def tensorboard(settings: Settings) -> TrainerCallback:
    """The callback that writes events for `tensorboard --logdir runs/<profile>/tensorboard`."""
    from torch.utils.tensorboard import SummaryWriter  # slow, and only needed here
    from transformers.integrations import TensorBoardCallback

    folder = settings.series_folder / "tensorboard" / settings.folder.name
    shutil.rmtree(folder, ignore_errors=True)  # events of an earlier run would be drawn into the same curve
    return TensorBoardCallback(SummaryWriter(folder))


def keeps_checkpoints(settings: Settings, processes: int) -> bool:
    """A run that ends before its first checkpoint is due keeps none; nor does one of several processes."""
    return 0 < settings.save_steps < settings.max_steps and processes == 1


def _arguments(settings: Settings, folder: Path, plan: Plan) -> SFTConfig:
    keeps = keeps_checkpoints(settings, plan.world.size)
    arguments = SFTConfig(
        output_dir=str(folder / CHECKPOINTS),
        max_steps=settings.max_steps,
        seed=settings.seed,
        per_device_train_batch_size=1,  # one micro-batch of rows
        gradient_accumulation_steps=settings.share(plan.world.size)[1],
        ddp_find_unused_parameters=False,  # every adapter weight is used in every step
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=min(settings.warmup_steps, settings.max_steps // 4),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=False,  # no autocast: the weights are in the precision of the arithmetic already
        fp16=False,
        use_cpu=plan.device.kind == "cpu",
        gradient_checkpointing=plan.value("checkpointing"),
        max_length=None,
        shuffle_dataset=False,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if keeps else "no",
        save_steps=settings.save_steps or 1,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=plan.device.kind != "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one device for each process, never a hidden DataParallel
    return arguments


def collator(settings: Settings, plan: Plan, tokenizer, order: list[list]) -> Collator:
    """How the rows of a micro-batch are laid out for the chosen attention."""
    flat = plan.value("attention") == attention.NAME or settings.batch_tokens is not None
    # few shapes: oneDNN keeps a kernel for each on a CPU, torch.compile makes its kernels anew for each
    multiple = widest(order, settings) if settings.batch_tokens else 8 if plan.device.kind == "cpu" else 1
    return Collator(flat, tokenizer.pad_token_id, multiple, max(len(row.input_ids) for rows in order for row in rows))


def make_trainer(model, settings, plan: Plan, order, tokenizer, batches: Collator, folder: Path, callbacks) -> Trainer:
    """The trainer of a run: ``order`` is a list of micro-batches of rows, ``batches`` lays them out."""
    rows = {id(row): {"input_ids": row.input_ids, "labels": row.labels} for batch in order for row in batch}
    numbers = Dataset.from_dict(
        {"rows": [[id(row) for row in batch] for batch in order]}
    )  # a long run repeats its rows
    trainer = Trainer(
        model=model,
        args=_arguments(settings, folder, plan),
        train_dataset=numbers.with_transform(lambda x: {"rows": [[rows[n] for n in batch] for batch in x["rows"]]}),
        data_collator=batches,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.processes = plan.world.size
    return trainer


@contextlib.contextmanager
def fast(model, plan: Plan):
    """The planned loss, attention and kernels in place while the model trains, and transformers' own again afterwards."""
    attention_before, base = model.config._attn_implementation, inner(model)
    code = vars(sys.modules[type(base).__module__])
    code_before = dict(code)
    forwards = {module: vars(module).get("forward") for module in base.modules()}
    if plan.value("kernels") == "liger":
        logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it warns about missing backends
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(base, cross_entropy=False, fused_linear_cross_entropy=False)
    layers = decoder_blocks(base) if plan.value("compile") else []
    products = products_in_fp8(base) if plan.value("products") == "fp8" else contextlib.nullcontext()
    try:
        if plan.value("attention") == attention.NAME:
            model.set_attn_implementation(attention.NAME)
        with products, supervised(model, plan.value("loss")):
            for layer in layers:
                layer.compile()
            yield
    finally:
        if model.config._attn_implementation != attention_before:
            model.set_attn_implementation(attention_before)
        code.update(code_before)  # Liger replaces classes and functions for every model that is made after,
        for module, forward in forwards.items():  # and the forward pass of each norm and MLP of this one
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward
        for layer in layers:
            layer._compiled_call_impl = None
