"""Checks for the exercises of 09_speed: ceilings, and the effect of a lever. They measure no time."""

from __future__ import annotations

from helpers.exercises import check, expect, need
from helpers.memory import Shape


@check
def ceilings(full: float, checkpointed: float, *, speed: float, shape: Shape) -> str:
    """The most tokens per second of full fine-tuning, and of LoRA with checkpointing, at a speed in operations per second."""
    once = speed / (2 * shape.block_weights)  # tokens per second of one pass through the weights
    count = "Count 2N for each pass through the weights, and divide the speed by the sum."
    of_full = (
        (once / 2, "full: that is LoRA's, which computes no gradients of the weights."),
        (once, "full: that is the forward pass alone."),
        (once * 3 / 4, "full: upside down: more operations per token are fewer tokens per second."),
        (once / 4, "full: there is no checkpointing here."),
    )
    expect(full, once / 3, f"full: not {full:,.0f}. {count}", *of_full, near=0.01)
    of_lora = (
        (once / 2, "checkpointed: the forward pass runs a second time, to compute the activations again."),
        (once / 4, "checkpointed: only the forward pass is repeated, and frozen weights need no gradients."),
    )
    expect(checkpointed, once / 3, f"checkpointed: not {checkpointed:,.0f}. {count}", *of_lora, near=0.01)
    same = "repeating the forward pass costs LoRA as much as the gradients of its weights cost full fine-tuning."
    return f"{once / 3:,.0f} tokens/s, both: {same}"


@check
def best_levers(faster: str, closer: str, *, found: list[dict], ceiling: dict[str, float]) -> str:
    """The rung that made the ladder faster by the largest factor, and the one that came closer to its ceiling most."""
    names = [rung["name"] for rung in found]
    speeds = [rung["tokens_per_second"] for rung in found]
    shares = [100 * s / ceiling[rung["chosen"]["precision"]] for s, rung in zip(speeds, found, strict=True)]
    times = {name: after / before for name, before, after in zip(names[1:], speeds, speeds[1:], strict=False)}
    points = {name: after - before for name, before, after in zip(names[1:], shares, shares[1:], strict=False)}
    for what, answer, gains, highest, gain in (
        ("faster", faster, times, names[speeds.index(max(speeds))], "made it {:.2f} times as fast"),
        ("closer", closer, points, names[shares.index(max(shares))], "moved it by {:+.1f} points"),
    ):
        need(answer in names, f"{what}: no rung is called {answer!r}; they are {', '.join(names)}.")
        need(answer != names[0], f"{what}: the ladder starts there, so that rung has changed nothing yet.")
        best, own = max(gains.values()), gain.format(gains[answer])
        stands = f"that rung is the highest, but it stands on those below it; by itself it {own}."
        below = f"that one {own}. Compare each rung with the one below it."
        right = gains[answer] >= best - 0.02 * abs(best)  # two that are as good as each other are both right
        need(right, f"{what}: {stands if answer == highest else below}")
    gained = f"{faster!r}: {times[faster]:.2f} times as fast; {closer!r}: {points[closer]:+.1f} points of the ceiling"
    return f"{gained}. A lever that also raises the ceiling may gain much and still end farther from it."
