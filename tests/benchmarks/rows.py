"""The rows that the speed benchmarks train on; the standard library alone, so that another tool's environment has them."""

from __future__ import annotations

import random

WARM, TIMED = 5, 15  # steps


def ragged_rows(number: int = 1000, seed: int = 0, longest: int = 1024) -> list[int]:
    """Lengths in tokens, log-normal, as instruction data has them: most short, a few long."""
    rng = random.Random(seed)
    return [min(max(int(rng.lognormvariate(5.82, 0.75)), 24), longest) for _ in range(number)]


def random_tokens(lengths: list[int], vocabulary: int = 32000) -> list[list[int]]:
    """Rows of random tokens of these lengths."""
    rng = random.Random(1)
    return [[rng.randrange(3, vocabulary) for _ in range(length)] for length in lengths]
