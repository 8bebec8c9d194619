"""TRL's SFTTrainer with this project's loss, optimizer, batches and kernels. The only module of the engine that imports trl."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from pathlib import Path

from helpers.batches import Collator, widest
from helpers.device import Plan
from helpers.engine import attention, distributed, lora
from helpers.engine.checkpoints import Checkpoint, Checkpoints
from helpers.engine.four_bit import unpacked_at_once
from helpers.engine.fp8 import products_in_fp8
from helpers.engine.loss import inner, supervised
from helpers.engine.monitor import MemoryMonitor
from helpers.engine.preflight import TrainingError
from helpers.models import decoder_blocks
from helpers.optimizer import AdamW
from helpers.records import CHECKPOINTS
from helpers.settings import Settings, shown

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

WEIGHTS = "trained.safetensors"  # in a checkpoint


class Trainer(SFTTrainer):
    """SFTTrainer with this project's loss, which has the value of TRL's own, optimizer and phase marks; its rows come collated."""

    def __init__(self, steps: Steps, checkpoints: Checkpoints | None, processes: int, **options):
        self.steps, self.checkpoints, self.processes, model = steps, checkpoints, processes, options["model"]
        weights = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        config, before = vars(model.config.get_text_config()), dict(vars(model.config.get_text_config()))
        super().__init__(**options)
        config.update(before)  # TRL and transformers change it: the loss of a mixture, the cache, the end token
        for name, p in model.named_parameters():  # TRL rounds an adapter on a 4-bit base to bf16, in an fp32 run too
            p.data = weights.get(name, p.data)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of the whole step
        self.remove_callback(PrinterCallback)  # Steps draws one line instead

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.steps.mark("forward")
        if torch.is_tensor(num_items_in_batch):  # a sharded model casts floats that it is given to bf16: 299 to 300
            num_items_in_batch = num_items_in_batch.long()
        loss = model(**inputs, num_items_in_batch=num_items_in_batch)["loss"]
        loss = loss * self.processes  # their gradients are averaged, though the tokens are counted over all
        self.steps.mark("backward")
        return loss

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        return AdamW, {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}

    def exact_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights by name, before rounding: the fp32 masters where the optimizer keeps any."""
        states = getattr(self.optimizer, "optimizer", self.optimizer).state
        return {name: states[p].get("master", p.detach()) for name, p in self._trained().items()}

    def _save_checkpoint(self, model, trial):
        self.steps.mark("save")
        begun = time.perf_counter()
        with self.checkpoints.saving(self.steps.steps, self.steps.elapsed()):
            super(SFTTrainer, self)._save_checkpoint(model, trial)  # past TRL's own, which adds a model card each time
        self.steps.start += time.perf_counter() - begun  # saving is not training: speeds are compared without it

    def _save(self, output_dir=None, state_dict=None):
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous() for name, value in self._trained().items()}, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        tensors = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        if tensors.keys() != self._trained().keys():
            raise TrainingError(
                f"{shown(resume_from_checkpoint)} holds other weights than this model trains; delete it to start again"
            )
        self.model.load_state_dict(tensors, strict=False)

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}


class Steps(TrainerCallback):
    """Keeps every step's figures, draws the progress line, marks phases, and stops at a loss that is not finite."""

    def __init__(self, monitor: MemoryMonitor | None = None, progress=None, since: Checkpoint | None = None):
        self.mark = monitor.mark if monitor else lambda phase: None
        self.progress = progress
        self.steps: list[dict] = since.steps if since else []
        self.before = since.seconds if since else 0.0
        self.held: dict = {}

    def on_train_begin(self, args, state, control, **_):
        self.start = time.perf_counter() - self.before

    def elapsed(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return time.perf_counter() - self.start

    def on_pre_optimizer_step(self, args, state, control, **_):
        self.mark("step")

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
        if self.progress is not None:
            self.progress.update(1)
            self.progress.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)


def tensorboard(settings: Settings, resumed: bool) -> TrainerCallback:
    """The callback that writes events for `tensorboard --logdir runs/<profile>/tensorboard`; those before a stop are kept."""
    from torch.utils.tensorboard import SummaryWriter  # slow, and only needed here
    from transformers.integrations import TensorBoardCallback

    folder = settings.series_folder / "tensorboard" / settings.folder.name
    for earlier in () if resumed else folder.glob("events.out.tfevents.*"):  # they would be drawn into the same curve
        earlier.unlink()
    return TensorBoardCallback(SummaryWriter(folder))


def keeps_checkpoints(settings: Settings, processes: int) -> bool:
    """A run that ends before its first checkpoint is due keeps none; nor does one of several processes."""
    return 0 < settings.save_steps < settings.max_steps and processes == 1


def _arguments(settings: Settings, plan: Plan) -> SFTConfig:
    keeps = keeps_checkpoints(settings, plan.world.size)
    arguments = SFTConfig(
        output_dir=str(settings.folder / CHECKPOINTS),
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
        use_cpu=plan.device.kind == "cpu",
        gradient_checkpointing=plan.value("checkpointing"),
        max_length=None,
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


def make_trainer(
    model, settings: Settings, plan: Plan, order, tokenizer, batches: Collator, steps: Steps, checkpoints=None
) -> Trainer:
    """The trainer of a run: ``order`` is a list of micro-batches of rows, ``batches`` lays them out."""

    writes = settings.report_to == "tensorboard" and plan.world.main
    writers = [tensorboard(settings, resumed=bool(steps.steps))] if writes else []

    def collate(numbered: list[dict]) -> dict[str, torch.Tensor]:
        rows = [row for entry in numbered for row in order[entry["number"]]]
        return batches([{"rows": [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]}])

    return Trainer(
        steps,
        checkpoints,
        plan.world.size,
        model=model,
        args=_arguments(settings, plan),
        train_dataset=Dataset.from_dict({"number": range(len(order))}),  # without the rows, which it would hash
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=[steps, *writers],
    )


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
    if plan.device.kind == "cpu":
        lora.fuse(base)
    layers = decoder_blocks(base) if plan.value("compile") else []
    products = products_in_fp8(base) if plan.value("products") == "fp8" else contextlib.nullcontext()
    if plan.device.kind != "cpu" and getattr(model, "is_loaded_in_4bit", False):
        products = unpacked_at_once(base)
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
