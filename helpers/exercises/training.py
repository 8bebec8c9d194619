"""Checks for the exercises of 02_lora_train and 03_full_train: adapters, steps, rounding, learning rates."""

import math
from collections.abc import Callable
from statistics import mean
from types import SimpleNamespace

from helpers.batches import training_order
from helpers.data import Data, fingerprint
from helpers.device import plan
from helpers.exercises import Unanswered, check, expect, need
from helpers.models import load_base
from helpers.settings import Settings, settings_for
from helpers.sources import resolve
from helpers.training import train

import torch
from peft import LoraConfig, PeftModel, get_peft_model


class _Line(torch.nn.Module):
    """The smallest model with a loss: two weights."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x, y) -> SimpleNamespace:
        return SimpleNamespace(loss=(x @ self.weight - y).square().mean())


@check
def training_step(step: Callable) -> str:
    """One training step, as a function: taken twice with SGD, and compared with the clipped gradient of each batch."""
    model, rate = _Line(), 0.1
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    batches = [{"x": torch.eye(2), "y": torch.tensor([9.0, 0.0])}, {"x": torch.eye(2), "y": torch.tensor([0.0, 9.0])}]
    for batch in batches:
        before, loss = model.weight.detach().clone(), model(**batch).loss
        gradient = torch.autograd.grad(loss, model.weight)[0]
        result = step(model, batch, optimizer, 1.0)
        moved = (before - model.weight.detach()) / rate
        if result is None and model.weight.grad is None and not moved.any():
            raise Unanswered("give training_step its lines, and run this cell again.")
        need(
            moved.any(), "no weight moved. Gradients come from loss.backward(), and are cleared after optimizer.step()."
        )
        longer = f"the step is {moved.norm():.1f} times as long as max_norm allows: clip the gradients before it."
        need(moved.norm() < 1.01, longer)
        kept = "the second step goes partly where the first one went: clear the gradients with optimizer.zero_grad()."
        need(torch.allclose(moved, gradient / gradient.norm(), atol=1e-3), kept)
        number = isinstance(result, float) and math.isclose(result, loss.item(), rel_tol=1e-5)
        need(
            number,
            "the weights are right. Return the loss as a number, loss.item(): the tensor would hold on to memory.",
        )
    return "forward, backward, clip, step, clear: both steps moved the weights along their own clipped gradient."


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
def trains_all(to_train: Callable, rate: float, *, settings: Settings) -> str:
    """What makes a loop for LoRA one for all parameters: the model it is given, tried on a tiny one, and the rate."""
    lora = settings_for(settings.profile, "lora").learning_rate
    model = to_train(load_base(resolve(settings.change(model="tiny")), "fp32"))
    adapted = isinstance(model, PeftModel)
    if adapted and rate == lora:
        raise Unanswered("give to_train and rate the two lines of full fine-tuning, and run this cell again.")
    need(
        not adapted, "the model still carries an adapter, and its own weights are frozen. What does full training need?"
    )
    need(isinstance(model, torch.nn.Module), "to_train has to return the model.")
    need(all(p.requires_grad for p in model.parameters()), "some of its parameters are frozen.")
    other = f"{rate:g} is not the rate of the settings that the first cells show for this notebook."
    expect(rate, settings.learning_rate, other, {lora: "that is LoRA's rate: all weights would move much too far."})
    return "the model as it is, and the smaller rate. Nothing else in the loop changes."


@check
def half_move(step: float, *, weight) -> str:
    """The size of a step that changes half of these weights if they are stored in bf16."""
    stored = weight.bfloat16()
    share = 100 * (((stored.float() + step).bfloat16()) != stored).double().mean().item()
    changes = f"a step of {step:g} changes {share:.1f} % of the weights"
    need(share > 35, f"{changes} only; the rest rounds it away.")
    need(share < 65, f"{changes}: take a smaller one.")
    why = "bf16 has seven bits of fraction: a step below 1/512 of its weight is always lost, and below 1/256 often"
    return f"{changes}. The typical weight is {weight.abs().median().item():.2g}; {why}."


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
