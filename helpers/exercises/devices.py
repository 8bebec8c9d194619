"""Checks for the exercises of 07_multi_gpu: memory of shards, the average of unequal parts, clipping in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from helpers.exercises import check, need, unlike
from helpers.memory import GB, Shape, predict

import torch


@check
def fewest_devices(each: float, fewest: int, *, shape: Shape, devices: int, memory: float, **rows) -> str:
    """GB of weights, gradients and optimizer states on each of ``devices``, and how many devices of ``memory`` bytes do."""

    def states(count: int) -> float:
        p = predict(shape, "full", shards=count, **rows)
        return (p.weights + p.gradients + p.masters + p.optimizer) / GB

    def peak(count: int) -> float:
        return predict(shape, "full", shards=count, **rows).total

    truth, whole, close = states(devices), predict(shape, "full", **rows), 0.03
    unlike(
        each,
        truth,
        (whole.weights / devices / GB, "that is the weights alone."),
        (devices * truth, "that is what all of them hold together, or each one if nothing is sharded."),
        (truth - whole.masters / devices / GB, "the optimizer also keeps an fp32 copy of the weights, the masters."),
        (truth * GB, "the question asks for GB, not for bytes."),
        near=close,
        name="each: ",
    )
    need(math.isclose(each, truth, rel_tol=close), "each: 2 + 2 + 4 + 8 bytes per parameter, divided by the devices.")
    need(fewest >= 1, f"fewest: {fewest} is no number of devices.")
    there = f"on {fewest} devices each needs {peak(fewest) / GB:.1f} of {memory / GB:.1f} GB"
    if fewest == math.ceil(states(1) * GB / memory):
        hint = f"fewest: that is enough for weights, gradients and optimizer states, but {there}. What is not divided?"
        need(peak(fewest) <= memory, hint)
    need(peak(fewest) <= memory, f"fewest: {there}.")
    need(fewest == 1 or peak(fewest - 1) > memory, f"fewest: {there}, and one device fewer would do.")
    return f"{truth:.0f} GB on each of {devices}; {there}. Activations and gathered blocks are not divided."


@check
def factors_of_means(factors: list[float], *, parts: Sequence[list], load: Callable, gradient: Callable) -> str:
    """What each process multiplies the mean of its own tokens with, so that a plain average over processes is right.

    Args:
        load: gives a model and one weight of it.
        gradient: of the summed loss of some rows for that weight, and their supervised tokens.
    """
    count = len(parts)
    need(len(factors) == count, f"there are {count} processes, so give {count} factors.")
    model, weight = load()
    sums, tokens = zip(*(gradient(model, weight, part) for part in parts), strict=True)
    total, all_tokens = gradient(model, weight, [row for part in parts for row in part])
    truth = total / all_tokens
    average = sum(f * g / n for f, g, n in zip(factors, sums, tokens, strict=True)) / count
    off = 100 * ((average - truth).norm() / truth.norm()).item()
    shares = [n / all_tokens for n in tokens]
    for wrong, reason in (
        ([1] * count, "that is the mean of means."),
        (shares, f"the weights are right, but the average divides by {count} once more."),
        ([1 / share / count for share in shares], "upside down: now a token among few counts even more."),
        (tokens, "a mean times its tokens is a sum, and a sum grows with the rows."),
    ):
        same = all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(factors, wrong, strict=True))
        need(off < 0.1 or not same, f"off by {off:.0f} % of the true gradient: {reason}")
    need(off < 0.1, f"off by {off:.1f} % of the true gradient. Write both as sums over tokens, and compare.")
    return (
        f"off by {off:.1g} %, which is rounding. Each of the {' and '.join(map(str, tokens))} tokens counts alike now."
    )


@check
def clipped_in_parts(sends: Callable, clips: Callable, *, gradient: torch.Tensor, limit: float) -> str:
    """Clipping by the norm where each process has a shard: the one number that it sends, and what it does with all.

    Args:
        gradient: a whole one, (out, in); it is cut into shards by rows and clipped by PyTorch.
        limit: of the norm.
    """

    def in_parts(gradient: torch.Tensor, count: int) -> torch.Tensor:
        shards = gradient.chunk(count)
        numbers = [torch.as_tensor(sends(shard.clone())) for shard in shards]
        for sent in numbers:
            need(sent.numel() == 1, f"a process sends {sent.numel()} numbers; one is enough, and gradients are large.")
        numbers = [sent.float().reshape(()) for sent in numbers]
        parts = [clips(shard.clone(), numbers, limit) for shard in shards]
        need(all(part is not None for part in parts), "`clips` returns nothing; it should return the clipped shard.")
        return torch.cat(parts)

    def whole(gradient: torch.Tensor) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(parameter, limit)
        return parameter.grad

    def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
        return torch.allclose(a, b, rtol=1e-3)

    small, truth = gradient * (0.9 * limit / gradient.norm()), whole(gradient)
    need(equal(in_parts(gradient, 1), truth), "on one device it does not clip to the limit.")
    need(equal(in_parts(small, 1), small), "a gradient below the limit must stay as it is.")
    for count in (2, 3):
        clipped, alone = in_parts(gradient, count), torch.cat([whole(shard) for shard in gradient.chunk(count)])
        own = f"each of {count} shards was clipped by its own norm: together they are too long, and point elsewhere."
        need(not equal(clipped, alone), own)
        norms = f"its norm is {clipped.norm().item():.3g} after clipping; of the whole it is {truth.norm().item():.3g}"
        need(equal(clipped, truth), f"cut into {count}, {norms}. Do norms of parts add up to the norm of the whole?")
        need(equal(in_parts(small, count), small), f"below the limit, cut into {count}, it changed.")
    return "one number from each process, and all scale by the same factor, as one device would."
