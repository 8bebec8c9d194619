"""The bundled scored questions: the arithmetic of fine-tuning, with worked answers.

A *problem* is a family plus its operands; a *question* is a problem in one phrasing.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from helpers.sources.answers import ANSWER_MARK

# the families by name: phrasings, held_out and practice phrasings and the working, as str.format templates
FAMILIES: dict[str, dict] = tomllib.loads(Path(__file__).with_name("questions.toml").read_text(encoding="utf-8"))
HARDER = 3  # the operands of a harder question are this many times those of the others
_MEMORY = (16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256)  # GB of a device


def _problems(family: str, s: int = 1) -> Iterator[dict]:
    """All operands of a family with its answer and what the working mentions; ``s`` scales the sizes."""
    hundreds = range(100, 1000, 100)
    match family:
        case "weights":
            for (precision, size), n in product({"fp32": 4, "bf16": 2, "int8": 1}.items(), range(1, 65)):
                yield {"n": n * s, "precision": precision, "bytes": size, "answer": n * s * size}
        case "adamw_states":
            yield from ({"n": n * s, "answer": 8 * n * s} for n in range(1, 81))
        case "four_times":
            yield from ({"w": w * s, "answer": 4 * w * s} for w in range(1, 101))
        case "lora_parameters":
            for r, a, b in product((1, 2, 4, 8), hundreds, hundreds):
                yield {"r": r, "a": a * s, "b": b * s, "sum": (a + b) * s, "answer": r * (a + b) * s}
        case "steps_per_epoch":
            for batch, steps in product((2, 4, 5, 8, 10), range(20, 310, 10)):
                yield {"batch": batch, "rows": batch * steps * s, "answer": steps * s}
        case "effective_batch":
            for m, a, d in product((1, 2, 3, 4, 6, 8), (2, 3, 4, 5, 8, 10), (2, 3, 4, 8)):
                yield {"m": m * s, "a": a, "d": d, "both": m * s * a, "answer": m * s * a * d}
        case "free_memory":
            for total, used in product(_MEMORY, range(10, 250, 10)):
                if used < total:
                    yield {"total": total * s, "used": used * s, "answer": (total - used) * s}
        case "tokens_per_step":
            for rows, length in product(range(2, 11), range(100, 1300, 100)):
                yield {"rows": rows, "length": length * s, "answer": rows * length * s}
        case "lora_scale":
            for r, factor in product((2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 32), range(1, 13)):
                yield {"r": r * s, "alpha": r * factor * s, "answer": factor}
        case "run_time":
            for steps, seconds in product(range(20, 420, 20), (2, 3, 4, 5, 6)):
                yield {"steps": steps * s, "seconds": seconds, "answer": steps * seconds * s}


def _given(problem: dict) -> list[int]:
    """The numbers that a question states, in order of size."""
    return sorted(n for name, n in problem.items() if name not in ("precision", "bytes", "sum", "both", "answer"))


def _groups(family: str, rng: random.Random) -> list[list[dict]]:
    """The problems of a family in random order; those that state the same numbers, in any order, stay together."""
    groups: dict[tuple, list[dict]] = {}
    for problem in _problems(family):
        groups.setdefault((*_given(problem), problem.get("precision")), []).append(problem)
    return rng.sample(list(groups.values()), len(groups))


def make_splits(train: int, validation: int, test: int, harder: int = 0, seed: int = 0) -> dict[str, list[dict]]:
    """Generate the scored questions, all families in equal parts. Every answer ends in ``The answer is: N``, an integer.

    Problems are dealt out to the splits first and phrased afterwards.

    Args:
        train, validation: rows in phrasings that training sees; the numbers of ``validation`` are new.
        test: rows with new numbers in held-out phrasings.
        harder: rows in held-out phrasings that state a number larger than any of the family in the other splits.
        seed: the same seed gives the same rows on any machine and Python version.

    Returns:
        A list of rows for each split; a row has ``question``, ``answer`` and ``family``.

    Raises:
        ValueError: if a split asks for more rows than the families can give.
    """
    rng = random.Random(seed)
    sizes = {"harder": harder, "test": test, "validation": validation, "train": train}
    splits: dict[str, list[dict]] = {name: [] for name in sizes}
    for position, (family, words) in enumerate(FAMILIES.items()):
        groups, largest = _groups(family, rng), max(_given(p)[-1] for p in _problems(family))
        beyond = [p for p in _problems(family, HARDER) if _given(p)[-1] > largest]
        for split, rows in sizes.items():
            share = rows // len(FAMILIES) + (position < rows % len(FAMILIES))
            phrasings = words["held_out" if split in ("test", "harder") else "phrasings"]
            if split == "train":  # what is left, in every phrasing
                questions = [(p, phrasing) for group in groups for p in group for phrasing in phrasings]
                questions = rng.sample(questions, min(share, len(questions)))
            elif split == "harder":
                questions = [(p, rng.choice(phrasings)) for p in rng.sample(beyond, min(share, len(beyond)))]
            else:
                taken, groups = groups[:share], groups[share:]
                questions = [(rng.choice(group), rng.choice(phrasings)) for group in taken]
            if len(questions) < share:
                raise ValueError(
                    f"the bundled questions cannot fill {rows} rows of the {split} split: the family {family!r} "
                    f"gives {len(questions)} of {share}; ask for fewer rows"
                )
            splits[split] += [_row(family, words["working"], *question) for question in questions]
    for rows in splits.values():
        rng.shuffle(rows)
    return splits


def practice_questions(each: int, held_out: set[str], seed: int = 0) -> list[dict]:
    """More scored questions, in phrasings that neither training nor the test has, for a method that asks and scores.

    Args:
        each: how many of each family.
        held_out: questions whose numbers must not be asked here, as those of the test.
        seed: the same seed gives the same rows.
    """
    rng, rows = random.Random(seed), []
    for family, words in FAMILIES.items():
        known = words["phrasings"] + words["held_out"]
        groups = _groups(family, rng)
        groups = [g for g in groups if held_out.isdisjoint(text.format(**p) for p in g for text in known)]
        questions = list(product((p for group in groups for p in group), words["practice"]))
        rows += [_row(family, words["working"], *question) for question in rng.sample(questions, each)]
    return rng.sample(rows, len(rows))


def _row(family: str, working: str, problem: dict, phrasing: str) -> dict:
    answer = f"{working.format(**problem)} {ANSWER_MARK} {problem['answer']}"
    return {"question": phrasing.format(**problem), "answer": answer, "family": family}
