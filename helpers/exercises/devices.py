"""Checks for the exercises of 07_multi_gpu: memory of shards, and the average of unequal parts."""

from collections.abc import Callable, Sequence

from helpers.exercises import check, expect, need
from helpers.memory import GB, Shape, predict


@check
def fewest_devices(each: float, fewest: int, *, shape: Shape, devices: int, memory: float, **rows) -> str:
    """GB of weights, gradients and optimizer states on each of ``devices``, and how many devices of ``memory`` bytes do."""

    def peak(count: int) -> float:
        return predict(shape, "full", shards=count, **rows).total / GB

    alone, card = predict(shape, "full", **rows), memory / GB
    truth = (alone.weights + alone.gradients + alone.masters + alone.optimizer) / devices / GB
    mistakes = {
        devices * truth: "each: that is what all of them hold together.",
        truth - alone.masters / devices / GB: "each: the optimizer also keeps fp32 master copies of the weights.",
    }
    expect(each, truth, "each: 2 + 2 + 4 + 8 bytes per parameter, divided by the devices, in GB.", mistakes, near=0.03)
    there = f"on {fewest} devices each needs {peak(fewest):.1f} of {card:.1f} GB"
    whole = "Activations and gathered blocks are not divided."
    need(peak(fewest) <= card, f"fewest: {there}. {whole}")
    need(fewest == 1 or peak(fewest - 1) > card, f"fewest: {there}, and one device fewer would do.")
    return f"{truth:.0f} GB on each of {devices}; {there}. {whole}"


@check
def factors_of_means(factors: list[float], *, parts: Sequence[list], load: Callable, gradient: Callable) -> str:
    """The factor for each process's own mean that makes a plain average over processes right.

    ``load`` gives a model and one of its weights; ``gradient`` gives, for some rows, the gradient of their summed loss
    for that weight and the number of their supervised tokens.
    """
    count = len(parts)
    need(len(factors) == count, f"there are {count} processes, so give {count} factors.")
    model, weight = load()
    sums, tokens = zip(*(gradient(model, weight, part) for part in parts), strict=True)
    total, all_tokens = gradient(model, weight, [row for part in parts for row in part])
    average = sum(f * g / n for f, g, n in zip(factors, sums, tokens, strict=True)) / count
    off = 100 * ((average * all_tokens - total).norm() / total.norm()).item()
    mistakes = {(1,) * count: "that is the mean of means."}
    mistakes[tuple(n / all_tokens for n in tokens)] = f"the average divides by {count} once more."
    reason = mistakes.get(tuple(factors), "write both as sums over tokens, and compare.")
    need(off < 0.1, f"off by {off:.1f} % of the true gradient: {reason}")
    return f"off by {off:.1g} %, which is rounding: each of the {all_tokens} tokens counts alike now."
