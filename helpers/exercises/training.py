"""Checks for the exercises of 02_lora_train and 03_full_train: adapters, steps, rounding, learning rates."""

import math
from statistics import mean

from helpers.batches import training_order
from helpers.data import Data, fingerprint
from helpers.device import plan
from helpers.exercises import check, expect, need
from helpers.models import load_base
from helpers.settings import Settings
from helpers.sources import resolve
from helpers.training import train

import torch
from peft import LoraConfig, get_peft_model


@check
def doubled_rank(predicted: float, wider: LoraConfig, *, settings: Settings) -> str:
    """An adapter of twice the rank and the same scale, and its parameters, counted on a model."""
    model = get_peft_model(load_base(resolve(settings)), wider)
    layer = next(m for m in model.modules() if hasattr(m, "get_delta_weight"))
    rank, scale, before = layer.r["default"], layer.scaling["default"], settings.alpha / settings.rank
    need(rank == 2 * settings.rank, f"the rank is {rank}, not twice {settings.rank}.")
    need(scale == before, f"the scale is {scale:g} instead of {before:g}: change alpha with the rank.")
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    products = "the rank enters A once and B once, and these are added, not multiplied."
    other = f"you predict {predicted:,.0f}, the model has another number. Does the adapter sit on the same layers?"
    expect(predicted, counted, other, {counted / 2: "that is the number at the old rank.", 2 * counted: products})
    return f"predicted and counted: {counted:,} parameters, r (in + out) for each layer, with r twice as large."


@check
def bad_start(start: LoraConfig, *, settings: Settings, tokenizer, prompt: list[dict]) -> str:
    """An adapter that changes what the model says before any training."""
    model = get_peft_model(load_base(resolve(settings)), start).eval()
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        adapted = model(**inputs).logits
        with model.disable_adapter():
            gap = (adapted - model(**inputs).logits).abs().max().item()
    need(gap > 0, "the logits with and without the adapter are equal: as long as B is zero, B A is zero for any A.")
    return f"a logit differs by {gap:.2g} before the first step. Training would have to repair random damage first."


@check
def same_step_fewer_activations(changed: Settings, *, few: Settings, rows: Data) -> str:
    """Settings that compute the same steps with half the activations or fewer; both are trained and compared."""
    copied = changed.runs_dir == few.runs_dir and changed.method == few.method
    need(copied, "make it with few.change(...), and keep its method: other settings would write over your own run.")
    orders = [fingerprint([row for batch in training_order(rows, s) for row in batch]) for s in (few, changed)]
    need(orders[0] == orders[1], "the two would see different rows. A step holds batch_size * accumulation rows.")
    longest = max(len(row.input_ids) for row in rows.train)
    before, after = (plan(s, resolve(s).shape, longest).predicted.activations for s in (few, changed))
    left = f"{100 * after / before:.0f} % of the activations"
    need(after < 0.6 * before, f"{left} are predicted to be left; the exercise wants about half.")
    first, second = train(few, rows).record, train(changed, rows).record
    apart = 100 * max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(first.steps, second.steps, strict=True))
    need(apart < 5, f"the losses differ by up to {apart:.1f} %: the two do not compute the same step.")
    two = "How many rows are in memory at a time and how many make a step are two settings."
    return f"{left}, and losses within {apart:.2f} %, which is rounding. {two}"


@check
def half_move(step: float, *, weight) -> str:
    """The size of a step that changes half of these weights if they are stored in bf16."""
    stored = weight.bfloat16()
    share = 100 * (((stored.float() + step).bfloat16()) != stored).double().mean().item()
    changes = f"a step of {step:g} changes {share:.1f} % of the weights"
    need(share > 35, f"{changes} only; the rest rounds it away.")
    need(share < 65, f"{changes}: take a smaller one.")
    why = "bf16 has 8 significant bits: a step below 1/512 of its weight is always lost, and below 1/256 often"
    return f"{changes}. The typical weight is {weight.abs().median().item():.2g}; {why}."


@check
def stops_at(value: float, *, rate: float) -> str:
    """The bf16 number that adding this rate no longer changes, starting from zero and adding it again and again."""
    total, step = torch.tensor(0.0, dtype=torch.bfloat16), torch.tensor(rate, dtype=torch.bfloat16)
    while total + step != total:
        total += step
    truth = total.item()
    need(value <= truth, f"it never gets as far as {value:g}. Where is half the distance to the next number your step?")
    need(value == truth, f"at {value:g} it still moves. Between two powers of two, bf16 numbers are equally far apart.")
    return f"{truth:g}: from here on, half the distance to the next number is {rate:g} or more: the sum rounds back."


@check
def farther_by(factor: float, *, slow: Settings, fast: Settings, rows: Data) -> str:
    """How many times larger the change of the weights is at the higher rate; both are trained and compared."""
    need(factor > 1, "the gradients may be alike, but Adam moves each weight by about the learning rate.")
    first, second = (mean(u["relative_norm"] for u in train(s, rows).record.update) for s in (slow, fast))
    measured = (
        f"measured is {second / first:.1f}, and the rates differ by {fast.learning_rate / slow.learning_rate:.1f}"
    )
    near = abs(math.log(factor * first / second)) < math.log(1.35)
    need(near, f"you say {factor:g}, {measured}. At first Adam divides the gradient by its size.")
    return f"{measured}. At first the rate alone sets the size of the change; that is why a rate belongs to a method."
