"""The statistics of a comparison, on plain numbers."""

from __future__ import annotations

import math
import random
from statistics import mean, stdev

# Student's t, 95 %, for 1 to 9 degrees of freedom
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def wilson(right: float, total: float, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927), as two shares between 0 and 1."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(first: list[int], second: list[int]) -> dict[str, float]:
    """Two runs on the same questions: in how many one did better, and the exact two-sided sign test on those.

    With results of 0 and 1 this is the exact McNemar test (McNemar 1947). It draws other questions, never another seed: it
    says whether these two runs differ, not whether two methods do.

    Returns:
        ``only_first`` and ``only_second`` (questions where that one did better), ``both`` (equal and right at least
        once), ``neither`` (equal, never right), and ``p``.
    """
    pairs = list(zip(first, second, strict=True))
    counts = {
        "both": sum(a == b > 0 for a, b in pairs),
        "only_first": sum(a > b for a, b in pairs),
        "only_second": sum(b > a for a, b in pairs),
        "neither": sum(a == b == 0 for a, b in pairs),
    }
    n, k = counts["only_first"] + counts["only_second"], min(counts["only_first"], counts["only_second"])
    return counts | {"p": min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)}


def over_seeds(values: list[float]) -> tuple[float, float, float]:
    """The mean of one value per seed and its 95 % interval by Student's t, which is endless where there is one seed."""
    if len(values) < 2:
        return mean(values), -math.inf, math.inf
    half = T95[min(len(values), 10) - 2] * stdev(values) / math.sqrt(len(values))
    return mean(values), mean(values) - half, mean(values) + half


def bootstrap(before: list, after: list[list], rounds: int = 2000) -> tuple[float, float, float]:
    """How much a mean changed, with the 95 % interval of a bootstrap that draws both items and seeds again.

    Args:
        before: for each item a pair of its sum and the number of what was summed, such as [loss, tokens].
        after: the same items for each seed.
    """
    moved = [[a - b for (a, _), (b, _) in zip(items, before, strict=True)] for items in after]
    weights, rng, found = [n for _, n in before], random.Random(0), []
    for _ in range(rounds):
        seeds, items = rng.choices(moved, k=len(moved)), rng.choices(range(len(before)), k=len(before))
        found.append(sum(seed[i] for seed in seeds for i in items) / len(seeds) / sum(weights[i] for i in items))
    found.sort()
    return sum(map(sum, moved)) / len(moved) / sum(weights), found[rounds // 40], found[-rounds // 40 - 1]
