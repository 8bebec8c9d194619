"""Checks for the exercises of 02_lora_train and 03_full_train: adapters, steps, rounding, learning rates."""

from __future__ import annotations

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
    two = f"the rank is doubled, but the scale is {scale:g} instead of {before:g}: two things changed at once"
    need(math.isclose(scale, before), f"{two}, and a difference could come from either. Change alpha with the rank.")
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    products = "the rank enters A once and B once, and these are added, not multiplied."
    other = f"you predict {predicted:,.0f}, the model has another number. Does the adapter sit on the same layers?"
    expect(predicted, counted, other, (counted / 2, "that is the number at the old rank."), (2 * counted, products))
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
    zeros = all(not p.any() for name, p in model.named_parameters() if "lora_B" in name)
    why = "B is still zero everywhere, and whatever A holds, B A = 0." if zeros else "look at A and B."
    need(gap > 0, f"the logits with and without the adapter are equal: {why}")
    return f"a logit differs by {gap:.2g} before the first step. Training would have to repair random damage first."


@check
def same_step_fewer_activations(changed: Settings, *, few: Settings, rows: Data) -> str:
    """Settings that compute the same steps with half the activations or fewer; both are trained and compared."""
    copied = changed.runs_dir == few.runs_dir
    need(copied, "make it with few.change(...): other settings would write over your own run.")
    need(changed.method == few.method, f"one run is {few.method}, the other {changed.method}: keep the method.")
    need(changed.max_steps == few.max_steps, f"{few.max_steps} steps against {changed.max_steps}: keep max_steps.")
    orders = [[row for batch in training_order(rows, s) for row in batch] for s in (few, changed)]
    different = (
        "the two runs would see different rows. A step has to hold batch_size times accumulation rows as before."
    )
    need(fingerprint(orders[0]) == fingerprint(orders[1]), different)
    longest = max(len(row.input_ids) for row in orders[0])
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
    need(step > 0, "a step has a size above zero.")
    stored = weight.bfloat16()
    share = (((stored.float() + step).bfloat16()) != stored).double().mean().item()
    changes = f"a step of {step:g} changes {100 * share:.1f} % of the weights"
    need(share > 0.35, f"{changes} only; the rest rounds it away.")
    need(share < 0.65, f"{changes}: take a smaller one.")
    why = "bf16 has 8 significant bits: a step below 1/512 of its weight is always lost, and below 1/256 often"
    return f"{step:g} changes {100 * share:.0f} %. The typical weight is {weight.abs().median().item():.2g}; {why}."


@check
def stops_at(value: float, *, rate: float) -> str:
    """The bf16 number that adding this rate no longer changes, starting from zero and adding it again and again."""
    total, step = torch.tensor(0.0, dtype=torch.bfloat16), torch.tensor(rate, dtype=torch.bfloat16)
    while total + step != total:
        total += step
    truth = total.item()
    far = f"it never gets as far as {value:g}. At which size is half the distance to the next number your step?"
    early = f"at {value:g} it still moves. Between two powers of two, bf16 numbers are equally far apart."
    expect(value, truth, far if value > truth else early, near=0)
    return f"{truth:g}: from here on, half the distance to the next number is {rate:g} or more: the sum rounds back."


@check
def farther_by(factor: float, *, slow: Settings, fast: Settings, rows: Data) -> str:
    """How many times larger the change of the weights is at the higher rate; both are trained and compared."""
    rates = fast.learning_rate / slow.learning_rate
    alike = "the gradients may be alike, but Adam moves each weight by about the learning rate."
    need(factor != 1 or rates == 1, alike)
    first, second = (mean(u["relative_norm"] for u in train(s, rows).record.update) for s in (slow, fast))
    measured = second / first
    adam = f"you say {factor:g}, measured is {measured:.1f}. At first Adam divides the gradient by its size."
    need(factor > 0 and abs(math.log(factor / measured)) < math.log(1.35), adam)
    why = "At first the rate alone sets the size of the change; that is why a rate belongs to a method."
    return f"measured {measured:.1f}, and the rates differ by a factor of {rates:.1f}. {why}"
