"""Checks for the exercises of 09_speed: ceilings, what a lever gave, the knee of a curve. They measure no time."""

from __future__ import annotations

import math
from collections.abc import Callable

from helpers.exercises import check, need, unlike
from helpers.memory import Shape


@check
def ceilings(full: float, checkpointed: float, *, speed: float, shape: Shape) -> str:
    """The most tokens per second of full fine-tuning, and of LoRA with checkpointing, by the operations of each.

    Args:
        speed: operations per second of plain matrix products.
    """
    once = (
        2 * shape.block_weights
    )  # operations per token: forward, backward through the layers, or the weights' gradients
    lora, three, four = speed / (2 * once), speed / (3 * once), speed / (4 * once)
    for name, answer, mistakes in (
        ("full", full, (
            (lora, "that is LoRA's, which computes no gradients of the weights."),
            (2 * lora, "that is the forward pass alone."),
            (speed * 3 / (4 * once), "upside down: more operations per token are fewer tokens per second."),
            (four, "nothing was said of checkpointing here."),
        )),
        ("checkpointed", checkpointed, (
            (lora, "the forward pass runs a second time, to compute the activations again."),
            (four, "only the forward pass is repeated, and LoRA computes no gradients of its frozen weights."),
        )),
    ):  # fmt: skip
        unlike(answer, three, *mistakes, near=0.01, name=f"{name}: ")
        count = "Count 2N for each pass through the weights, and divide the speed by the sum."
        need(math.isclose(answer, three, rel_tol=0.01), f"{name}: not {answer:,.0f}. {count}")
    return (
        f"{three:,.0f} tokens/s, both: repeating the forward pass costs LoRA as much as the gradients of its weights cost full "
        "fine-tuning."
    )


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
        right = gains[answer] >= best - 0.02 * abs(best)  # two that are as good as each other are both right
        stands = f"{what}: that rung stands highest, but on those below it; by itself it {own}."
        need(right or answer != highest, stands)
        need(right, f"{what}: that one {own}. Compare each rung with the one below it.")
    return (
        f"{faster!r}: {times[faster]:.2f} times as fast; {closer!r}: {points[closer]:+.1f} points of the ceiling. A lever that "
        "raises the ceiling too may gain much and still be farther from it."
    )


@check
def knee(function: Callable, *, known: dict[int, float], own: Callable[[], dict[int, float]], share: float) -> str:
    """A function from a curve, tokens/s by tokens per step, to the fewest tokens per step with this share of the best speed.

    Args:
        known: a measured curve.
        own: measures another on this machine; called once the function is right on ``known``.
    """

    def truth(curve: dict[int, float]) -> int:
        return min(n for n, speed in curve.items() if speed >= share * max(curve.values()))

    slump = known | {max(known) * 2: min(known.values())}  # as where memory runs short
    for name, curve in (
        ("the measured curve", known),
        ("a curve that still rises at its end", {n: speed for n, speed in known.items() if n <= truth(known)}),
        ("a curve that falls at its end", slump),
        ("a curve whose points come in another order", dict(reversed(slump.items()))),
    ):
        answer, right, fastest = function(dict(curve)), truth(curve), max(curve, key=curve.get)
        nearly = f"{fastest:,} tokens per step are the fastest, but {right:,} are nearly as fast, with less memory."
        need(answer == right or answer != fastest, f"{name}: {nearly}")
        slow = f"at {answer} tokens per step there are {curve.get(answer, 0):,.0f} tokens/s, and {100 * share:g} % of the best"
        enough = answer not in curve or curve[answer] >= share * curve[fastest]
        need(enough, f"{name}: {slow} are {share * curve[fastest]:,.0f}.")
        need(
            answer == right,
            f"{name}: you give {answer}; the fewest tokens per step that are fast enough are {right:,}.",
        )
    mine = own()
    measured = ", ".join(f"{n:,.0f} tokens per step give {speed:,.0f} tokens/s" for n, speed in mine.items())
    here = f"On this machine: {measured}; the knee is at {function(dict(mine)):,.0f}."
    return f"the measured curve bends at {truth(known):,} tokens per step. {here}"
