"""Checks for the exercises of 07_multi_gpu: memory of shards, the average of unequal parts, clipping in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from helpers.exercises import check, need, number
from helpers.memory import GB, Shape, predict

import torch


@check
def fewest_devices(each, fewest, *, shape: Shape, devices: int, memory: float, **rows) -> str:
    """GB of weights, gradients and optimizer states on each of ``devices``, and how many devices of ``memory`` bytes do."""

    def states(n: int) -> float:
        p = predict(shape, "full", shards=n, **rows)
        return p.weights + p.gradients + p.masters + p.optimizer

    def peak(n: int) -> float:
        return predict(shape, "full", shards=n, **rows).total

    each, truth = number(each, "each") * GB, states(devices)
    p = predict(shape, "full", **rows)
    for wrong, otherwise in (
        (p.weights / devices, "each: that is the weights alone."),
        (devices * truth, "each: that is what all of them hold together, or each one if nothing is sharded."),
        (truth - p.masters / devices, "each: the optimizer also keeps an fp32 copy of the weights, the masters."),
        (truth * GB, "each: the question asks for GB, not for bytes."),
    ):
        need(not math.isclose(each, wrong, rel_tol=0.03), otherwise)
    need(math.isclose(each, truth, rel_tol=0.03), "each: 2 + 2 + 4 + 8 bytes a parameter, divided by the devices.")
    n = number(fewest, "fewest")
    need(n == int(n) and n >= 1, f"fewest: {n:g} is no number of devices.")
    alone = math.ceil(states(1) / memory)
    has = f"on {n:g} devices each needs {peak(int(n)) / GB:.1f} of {memory / GB:.1f} GB"
    need(
        n != alone or peak(alone) <= memory,
        f"fewest: that would do for weights, gradients and optimizer states, but {has}. What does sharding not divide?",
    )
    need(peak(int(n)) <= memory, f"fewest: {has}.")
    need(n == 1 or peak(int(n) - 1) > memory, f"fewest: {has}, and one device fewer would do.")
    return f"{truth / GB:.0f} GB on each of {devices}; {has}. Activations and gathered blocks are not divided."


@check
def factors_of_means(factors, *, parts: Sequence[list], load: Callable, gradient: Callable) -> str:
    """What each process multiplies the mean of its own tokens with, so that a plain average over processes is right.

    Args:
        load: gives a model and one weight of it.
        gradient: of the summed loss of some rows for that weight, and their supervised tokens.
    """
    factors = [number(f, "a factor") for f in factors]
    need(len(factors) == len(parts), f"there are {len(parts)} processes, so give {len(parts)} factors.")
    model, weight = load()
    sums, tokens = zip(*(gradient(model, weight, part) for part in parts), strict=True)
    whole, together = gradient(model, weight, [row for part in parts for row in part])
    true = whole / together
    average = sum(f * g / n for f, g, n in zip(factors, sums, tokens, strict=True)) / len(parts)
    off = 100 * ((average - true).norm() / true.norm()).item()
    if off > 0.1:
        shares = [n / together for n in tokens]
        for wrong, otherwise in (
            ([1] * len(parts), "that is the mean of means."),
            (shares, f"the weights are right, but the average divides by {len(parts)} once more."),
            ([1 / s / len(parts) for s in shares], "upside down: now a token among few counts even more."),
            (tokens, "a mean times its tokens is a sum, and a sum grows with the rows."),
        ):
            same = all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(factors, wrong, strict=True))
            need(not same, f"off by {off:.0f} % of the true gradient: {otherwise}")
    need(off < 0.1, f"off by {off:.1f} % of the true gradient. Write both as sums over tokens, and compare.")
    return f"off by {off:.1g} %, which is rounding. {' and '.join(map(str, tokens))} tokens count alike now, each one."


@check
def clipped_in_parts(sends, clips, *, gradient: torch.Tensor, limit: float) -> str:
    """Clipping by the norm where each process has a shard: the one number that it sends, and what it does with all.

    Args:
        gradient: a whole one, (out, in); it is cut into shards by rows and clipped by PyTorch.
        limit: of the norm.
    """

    def clipped(gradient: torch.Tensor, count: int) -> torch.Tensor:
        shards = gradient.chunk(count)
        numbers = [torch.as_tensor(sends(shard.clone())) for shard in shards]
        for sent in numbers:
            need(sent.numel() == 1, f"a process sends {sent.numel()} numbers; one is enough, and gradients are large.")
        numbers = [sent.float().reshape(()) for sent in numbers]
        parts = [clips(shard.clone(), numbers, limit) for shard in shards]
        need(all(p is not None for p in parts), "`clips` returns nothing; it should return the clipped shard.")
        return torch.cat(parts)

    def whole(gradient: torch.Tensor) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(parameter, limit)
        return parameter.grad

    small = gradient * (0.9 * limit / gradient.norm())
    need(
        torch.allclose(clipped(gradient, 1), whole(gradient), rtol=1e-3), "on one device it does not clip to the limit."
    )
    need(torch.allclose(clipped(small, 1), small, rtol=1e-3), "a gradient below the limit must stay as it is.")
    for count in (2, 3):
        found, truth = clipped(gradient, count), whole(gradient)
        each = torch.cat([whole(shard) for shard in gradient.chunk(count)])
        need(
            not torch.allclose(found, each, rtol=1e-3),
            f"each of {count} shards was clipped by its own norm: together they are too long, and point elsewhere.",
        )
        need(
            torch.allclose(found, truth, rtol=1e-3),
            f"cut into {count}, its norm is {found.norm().item():.3g} after clipping; whole, {truth.norm().item():.3g}. "
            "Do norms of parts add up to the norm of the whole?",
        )
        need(torch.allclose(clipped(small, count), small, rtol=1e-3), f"below the limit, cut into {count}, it changed.")
    return "one number from each process, and all scale by the same factor, as one device would."
