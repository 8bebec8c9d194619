"""Checks for the exercises of 02_lora_train and 03_full_train: adapters, steps, rounding, learning rates."""

from __future__ import annotations

import math
from statistics import mean

from helpers.batches import training_order
from helpers.data import Data, fingerprint
from helpers.device import plan
from helpers.exercises import check, need, number
from helpers.models import load_base
from helpers.settings import Settings
from helpers.sources import resolve
from helpers.training import train

import torch
from peft import PeftConfig, get_peft_model


def _wrapped(config, settings: Settings):
    """A fresh base with this adapter on it."""
    need(isinstance(config, PeftConfig), f"this should be a LoraConfig, not {type(config).__name__}.")
    return get_peft_model(load_base(resolve(settings)), config)


@check
def doubled_rank(predicted, wider, *, settings: Settings) -> str:
    """An adapter of twice the rank and the same scale, and its parameters, counted on a model."""
    model = _wrapped(wider, settings)
    layer = next(m for m in model.modules() if hasattr(m, "get_delta_weight"))
    need(layer.r["default"] == 2 * settings.rank, f"the rank is {layer.r['default']}, not twice {settings.rank}.")
    scale, before = layer.scaling["default"], settings.alpha / settings.rank
    need(
        math.isclose(scale, before),
        f"the rank is doubled, but the update is now scaled by {scale:g} instead of {before:g}: two things changed at "
        "once, and a difference could come from either. Alpha has to go along with the rank.",
    )
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    said = number(predicted, "predicted")
    need(said != counted / 2, "that is the number at the rank of before.")
    need(said != 2 * counted, "the rank enters A once and B once, and these are added, not multiplied.")
    need(
        said == counted,
        f"you predict {said:,.0f}, the model has another number. Does the adapter sit on the same layers?",
    )
    return f"predicted and counted: {counted:,} parameters, r (in + out) for each layer, with r twice as large."


@check
def bad_start(start, *, settings: Settings, tokenizer, prompt: list[dict]) -> str:
    """An adapter that changes what the model says before any training."""
    model = _wrapped(start, settings).eval()
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        adapted = model(**inputs).logits
        with model.disable_adapter():
            gap = (adapted - model(**inputs).logits).abs().max().item()
    zeros = all(not p.any() for n, p in model.named_parameters() if "lora_B" in n)
    need(
        gap > 0,
        "the logits with and without the adapter are equal"
        + (": B is still zero everywhere, and whatever A holds, B A = 0." if zeros else ". Look at A and B."),
    )
    return (
        f"a logit differs by {gap:.2g} before the first step. Training would have to repair random damage first, and the "
        "base would not be what the run starts from."
    )


@check
def same_step_fewer_activations(changed, *, few: Settings, rows: Data) -> str:
    """Settings that compute the same steps with half the activations or fewer; both are trained and compared."""
    need(isinstance(changed, Settings), "make it with few.change(...), so that it stays Settings.")
    need(
        changed.runs_dir == few.runs_dir, "make it with few.change(...): other settings would write over your own run."
    )
    need(changed.method == few.method, f"one run is {few.method}, the other {changed.method}: keep the method.")
    need(changed.max_steps == few.max_steps, f"{few.max_steps} steps against {changed.max_steps}: keep max_steps.")
    orders = [[row for batch in training_order(rows, s) for row in batch] for s in (few, changed)]
    need(
        fingerprint(orders[0]) == fingerprint(orders[1]),
        "the two runs would see different rows. A step has to hold as many as before: batch_size times accumulation.",
    )
    longest = max(len(row.input_ids) for row in orders[0])
    before, after = (
        plan(settings, resolve(settings).shape, longest).predicted.activations for settings in (few, changed)
    )
    share = after / before
    need(share < 0.6, f"{100 * share:.0f} % of the activations are predicted to be left; about half is asked for.")
    first, second = train(few, rows).record, train(changed, rows).record
    apart = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(first.steps, second.steps, strict=True))
    need(apart < 0.05, f"the losses differ by up to {100 * apart:.1f} %: the two do not compute the same step.")
    return (
        f"{100 * share:.0f} % of the activations, and losses within {100 * apart:.2f} %: what is left is rounding. "
        "How many rows are in memory at a time and how many make a step are two settings."
    )


@check
def half_move(step, *, weight) -> str:
    """The size of a step that changes half of these weights if they are kept in bf16."""
    step = number(step, "step")
    need(step > 0, "a step has a size above zero.")
    kept = weight.bfloat16()
    share = (((kept.float() + step).bfloat16()) != kept).double().mean().item()
    need(share > 0.35, f"a step of {step:g} changes {100 * share:.1f} % of the weights only; the rest rounds it away.")
    need(share < 0.65, f"a step of {step:g} changes {100 * share:.1f} % of the weights: smaller.")
    return (
        f"{step:g} changes {100 * share:.0f} %. The typical weight here is {weight.abs().median().item():.2g}, and bf16 keeps "
        "8 significant bits: a step below 1/512 of its weight is always lost, and below 1/256 often."
    )


@check
def stops_at(value, *, rate: float) -> str:
    """Where a bf16 number stands still to which this rate is added again and again, starting from zero."""
    total, step = torch.tensor(0.0, dtype=torch.bfloat16), torch.tensor(rate, dtype=torch.bfloat16)
    while total + step != total:
        total += step
    said, truth = number(value, "value"), total.item()
    need(math.isfinite(said), "it does stop.")
    need(
        said <= truth,
        f"it never gets as far as {said:g}. At which size is half the distance to the next number your step?",
    )
    need(
        said == truth, f"at {said:g} it still moves. Between two powers of two, all bf16 numbers are equally far apart."
    )
    return (
        f"{truth:g}: from there on, half the distance to the next number is {rate:g} or more, and the sum rounds back."
    )


@check
def farther_by(factor, *, slow: Settings, fast: Settings, rows: Data) -> str:
    """How many times larger the change of the weights is at the higher rate; both are trained and compared."""
    said, rates = number(factor, "factor"), fast.learning_rate / slow.learning_rate
    need(said != 1, "the gradients may be alike, but Adam moves each weight by about the learning rate.")
    first, second = (mean(u["relative_norm"] for u in train(s, rows).record.update) for s in (slow, fast))
    measured = second / first
    need(
        said > 0 and abs(math.log(said / measured)) < math.log(1.35),
        f"you said {said:g}, measured is {measured:.1f}. In its first steps Adam divides the gradient by its own size.",
    )
    return (
        f"measured {measured:.1f}, and the rates differ by a factor of {rates:.1f}. At first the rate alone sets the size of the "
        "change; that is why a rate belongs to a method."
    )
