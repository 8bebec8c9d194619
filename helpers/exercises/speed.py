"""Checks for the exercises of 09_speed: ceilings, what a lever gave, the knee of a curve. They measure no time."""

from __future__ import annotations

import math
from collections.abc import Callable

from helpers.exercises import check, need, number
from helpers.memory import Shape


@check
def ceilings(full, checkpointed, *, speed: float, shape: Shape) -> str:
    """The most tokens a second of full fine-tuning, and of LoRA with checkpointing, by the operations of each.

    Args:
        speed: operations a second of plain matrix products.
    """
    forward = through = of_weights = 2 * shape.block_weights  # operations a token
    each = 4 * shape.block_weights
    for name, said, operations, reasons in (
        ("full", full, forward + through + of_weights, {
            each: "that is LoRA's, which computes no gradients of the weights.",
            forward: "that is the forward pass alone.",
            each**2 / (forward + through + of_weights): "upside down: more operations a token are fewer tokens a second.",
            2 * forward + through + of_weights: "nothing was said of checkpointing here.",
        }),
        ("checkpointed", checkpointed, 2 * forward + through, {
            each: "the forward pass runs a second time, to compute the activations again.",
            2 * each: "only the forward pass is repeated, and LoRA computes no gradients of its frozen weights.",
        }),
    ):  # fmt: skip
        said = number(said, name)
        for wrong, otherwise in reasons.items():
            need(not math.isclose(said, speed / wrong, rel_tol=0.01), f"{name}: {otherwise}")
        need(
            math.isclose(said, speed / operations, rel_tol=0.01),
            f"{name}: not {said:,.0f}. Count 2N for each pass through the weights, and divide the speed by the sum.",
        )
    return (
        f"{speed / (forward + through + of_weights):,.0f} tokens/s, both: repeating the forward pass costs LoRA as much as the "
        "gradients of its weights cost full fine-tuning."
    )


@check
def best_levers(faster, closer, *, found: list[dict], ceiling: dict[str, float]) -> str:
    """The rung that made the ladder faster by the largest factor, and the one that came closer to its ceiling most."""
    names = [rung["name"] for rung in found]
    speeds = [rung["tokens_per_second"] for rung in found]
    shares = [100 * s / ceiling[rung["chosen"]["precision"]] for s, rung in zip(speeds, found, strict=True)]
    times = {name: after / before for name, before, after in zip(names[1:], speeds, speeds[1:], strict=False)}
    points = {name: after - before for name, before, after in zip(names[1:], shares, shares[1:], strict=False)}
    for what, said, gains, top, gain in (
        ("faster", faster, times, names[speeds.index(max(speeds))], "made it {:.2f} times as fast"),
        ("closer", closer, points, names[shares.index(max(shares))], "moved it by {:+.1f} points"),
    ):
        need(said in names, f"{what}: no rung is called {said!r}; they are {', '.join(names)}.")
        need(said != names[0], f"{what}: the ladder starts there, so that rung has changed nothing yet.")
        best = max(gains.values())
        close = gains[said] >= best - 0.02 * abs(best)  # two that are as good as each other are both right
        need(
            close or said != top,
            f"{what}: that rung stands highest, but on those below it; by itself it {gain.format(gains[said])}.",
        )
        need(close, f"{what}: that one {gain.format(gains[said])}. Compare each rung with the one below it.")
    return (
        f"{faster!r}: {times[faster]:.2f} times as fast; {closer!r}: {points[closer]:+.1f} points of the ceiling. A lever that "
        "raises the ceiling too may gain much and still be farther from it."
    )


@check
def knee(function, *, known: dict[int, float], own: Callable[[], dict[int, float]], share: float) -> str:
    """A function from a curve, tokens/s by tokens a step, to the fewest tokens a step with this share of the best speed.

    Args:
        known: a measured curve.
        own: measures another on this machine; called once the function is right on ``known``.
    """

    def truth(curve: dict[int, float]) -> int:
        return min(n for n, speed in curve.items() if speed >= share * max(curve.values()))

    rising = {n: speed for n, speed in known.items() if n <= truth(known)}
    slump = known | {max(known) * 2: min(known.values())}  # as where memory runs short
    for name, curve in (
        ("the measured curve", known),
        ("a curve that still rises at its end", rising),
        ("a curve that falls at its end", slump),
        ("a curve whose points come in another order", dict(reversed(slump.items()))),
    ):
        said, right = function(dict(curve)), truth(curve)
        fastest = max(curve, key=curve.get)
        need(
            said == right or said != fastest,
            f"{name}: {fastest:,} tokens a step are the fastest, but {right:,} are nearly as fast, with less memory.",
        )
        need(
            said not in curve or curve[said] >= share * curve[fastest],
            f"{name}: at {said} tokens a step there are {curve.get(said, 0):,.0f} tokens/s, and {100 * share:g} % of the best "
            f"are {share * curve[fastest]:,.0f}.",
        )
        need(said == right, f"{name}: you give {said}; the fewest tokens a step that are fast enough are {right:,}.")
    mine = own()
    return (
        f"the measured curve bends at {truth(known):,} tokens a step. On this machine: "
        + ", ".join(f"{n:,.0f} tokens a step give {speed:,.0f} tokens/s" for n, speed in mine.items())
        + f"; the knee is at {function(dict(mine)):,.0f}."
    )
