"""The bundled scored questions: the arithmetic of fine-tuning, with worked, checkable answers.

Every answer ends in ``The answer is: N`` with an integer N, so a machine scores a reply exactly. A *problem* is a family
plus its operands; a *question* is a problem in one phrasing. Problems are dealt out to the splits first and phrased
afterwards, so the test asks numbers that training never saw, in no order, and in phrasings that training never saw.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from pathlib import Path

ANSWER_MARK = "The answer is:"
_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def _weights(scale: int) -> Iterator[dict]:
    for (precision, size), n in product(_BYTES.items(), range(1, 65)):
        yield {"n": n * scale, "precision": precision, "bytes": size, "answer": n * scale * size}


def _adamw_states(scale: int) -> Iterator[dict]:
    yield from ({"n": n * scale, "answer": 8 * n * scale} for n in range(1, 81))


def _four_times(scale: int) -> Iterator[dict]:
    yield from ({"w": w * scale, "answer": 4 * w * scale} for w in range(1, 101))


def _lora_parameters(scale: int) -> Iterator[dict]:
    for r, a, b in product((1, 2, 4, 8), range(100, 1000, 100), range(100, 1000, 100)):
        a, b = a * scale, b * scale
        yield {"r": r, "a": a, "b": b, "sum": a + b, "answer": r * (a + b)}


def _steps_per_epoch(scale: int) -> Iterator[dict]:
    for batch, steps in product((2, 4, 5, 8, 10), range(20, 310, 10)):
        yield {"batch": batch, "rows": batch * steps * scale, "answer": steps * scale}


def _effective_batch(scale: int) -> Iterator[dict]:
    for micro, accumulation, devices in product((1, 2, 3, 4, 6, 8), (2, 3, 4, 5, 8, 10), (2, 3, 4, 8)):
        both = micro * scale * accumulation
        yield {"m": micro * scale, "a": accumulation, "d": devices, "both": both, "answer": both * devices}


def _free_memory(scale: int) -> Iterator[dict]:
    for total, used in product((16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256), range(10, 250, 10)):
        if used < total:
            yield {"total": total * scale, "used": used * scale, "answer": (total - used) * scale}


def _tokens_per_step(scale: int) -> Iterator[dict]:
    for rows, length in product(range(2, 11), range(100, 1300, 100)):
        yield {"rows": rows, "length": length * scale, "answer": rows * length * scale}


def _lora_scale(scale: int) -> Iterator[dict]:
    for r, factor in product((2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 32), range(1, 13)):
        yield {"r": r * scale, "alpha": r * factor * scale, "answer": factor}


def _run_time(scale: int) -> Iterator[dict]:
    for steps, seconds in product(range(20, 420, 20), (2, 3, 4, 5, 6)):
        yield {"steps": steps * scale, "seconds": seconds, "answer": steps * seconds * scale}


_OPERANDS = (_weights, _adamw_states, _four_times, _lora_parameters, _steps_per_epoch, _effective_batch, _free_memory)
_OPERANDS = {f.__name__[1:]: f for f in (*_OPERANDS, _tokens_per_step, _lora_scale, _run_time)}
HARDER = 3  # the operands of a harder question are this many times larger than any that training sees


def families() -> dict[str, dict]:
    """The families of questions by name: ``phrasings``, ``held_out`` phrasings and ``working``, as str.format templates."""
    with open(Path(__file__).with_name("questions.toml"), "rb") as file:
        return tomllib.load(file)


def _problems(family: str, rng: random.Random) -> list[list[dict]]:
    """The problems of a family in random order; those that differ only in the order of their numbers stay together."""
    groups: dict[tuple, list[dict]] = {}
    for operands in _OPERANDS[family](1):
        given = {name: value for name, value in operands.items() if name not in ("sum", "both", "answer")}
        groups.setdefault(tuple(sorted(map(str, given.values()))), []).append(operands)
    return rng.sample(list(groups.values()), len(groups))


def make_splits(train: int, validation: int, test: int, harder: int = 0, seed: int = 0) -> dict[str, list[dict]]:
    """Generate the scored questions, all families in equal parts.

    Args:
        train, validation: rows in phrasings that training sees; the numbers of ``validation`` are new.
        test: rows with new numbers in held-out phrasings.
        harder: rows in held-out phrasings with numbers larger than any in the other splits.
        seed: the same seed gives the same rows on any machine and Python version.

    Returns:
        A list of rows for each split; a row has ``question``, ``answer`` and ``family``.

    Raises:
        ValueError: if a split asks for more rows than the families can give.
    """
    rng = random.Random(seed)
    sizes = {"harder": harder, "test": test, "validation": validation, "train": train}
    splits: dict[str, list[dict]] = {name: [] for name in sizes}
    for position, (family, templates) in enumerate(families().items()):
        problems = _problems(family, rng)
        shares = {n: rows // len(_OPERANDS) + (position < rows % len(_OPERANDS)) for n, rows in sizes.items()}
        questions = {
            "harder": [(p, rng.choice(templates["held_out"])) for p in _largest(family, shares["harder"], rng)]
        }
        for split, phrasings in (("test", "held_out"), ("validation", "phrasings")):
            taken, problems = problems[: shares[split]], problems[shares[split] :]
            questions[split] = [(rng.choice(group), rng.choice(templates[phrasings])) for group in taken]
        every = [(p, phrasing) for group in problems for p in group for phrasing in templates["phrasings"]]
        questions["train"] = rng.sample(every, min(shares["train"], len(every)))
        for split, rows in questions.items():
            if len(rows) < shares[split]:
                raise ValueError(
                    f"the bundled questions cannot fill {sizes[split]} rows of the {split} split: the family {family!r} "
                    f"gives {len(rows)} of {shares[split]}; ask for fewer rows"
                )
            splits[split] += [_row(family, templates["working"], *row) for row in rows]
    for rows in splits.values():
        rng.shuffle(rows)
    return splits


def _largest(family: str, number: int, rng: random.Random) -> list[dict]:
    """Problems whose operands are all beyond those of the other splits."""
    usual = {str(p) for p in _OPERANDS[family](1)}
    return rng.sample([p for p in _OPERANDS[family](HARDER) if str(p) not in usual], number)


def _row(family: str, working: str, operands: dict, phrasing: str) -> dict:
    answer = f"{working.format(**operands)} {ANSWER_MARK} {operands['answer']}"
    return {"question": phrasing.format(**operands), "answer": answer, "family": family}


_MARKS = re.compile(rf"{ANSWER_MARK}|^####(?=[ \t]*[-+$]?[\d.,/]+[ \t%]*$)|\\boxed(?=\{{)", re.MULTILINE)


def answer_of(text: str) -> str | None:
    r"""The answer behind the last mark of a final answer, in a normal form so that equal answers are equal strings.

    The marks are ``The answer is:`` (the bundled questions, MetaMathQA), a line ``#### 72`` (GSM8K) and ``\boxed{72}`` (MATH).

    The rule: a leading number counts and what is said after it in words does not (``12 GB.`` is 12); thousands separators,
    ``$`` and ``%`` are dropped; decimals, ``a/b`` and ``\frac{a}{b}`` become one fraction in lowest terms (``0.5`` is ``1/2``,
    ``0.33`` is not ``1/3``). Anything else, such as ``3\sqrt{2}``, is compared as text, without spaces, sizes (``\left``),
    units in ``\text{}`` and a leading ``x =``. Two forms of one expression, as ``2(x+1)`` and ``2x+2``, therefore count as
    different.

    Returns:
        A number ("8", "-5/2"), an expression, or None where the mark or the answer is missing.
    """
    *_, mark = [None, *_MARKS.finditer(text)]
    rest = text[mark.end() :] if mark else ""
    lines = (_boxed(rest) if mark and mark[0] == r"\boxed" else rest).strip().splitlines()
    if not lines:
        return None
    layout = r"\\(left|right|displaystyle|[!,;: ])|\\text\{[^}]*\}|\^\{?\\circ\}?|\\?[$%]|\\[()\[\]]"
    answer = re.sub(layout, "", re.sub(r"^\\text\{([^{}]*)\}$", r"\1", lines[0]))
    answer = re.sub(r"^[a-zA-Z]\s*=", "", answer.replace("dfrac", "frac").replace("tfrac", "frac").strip())
    answer = re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer.replace("{,}", ","))
    answer = re.sub(r"^\s*(-?)\\frac\{(\d+)\}\{(\d+)\}(?=\W*$)", r"\1\2/\3", answer)
    number = re.match(r"\s*(-?\s?\d*\.?\d+(?:/\d+)?)\.?(?=$|\s*[a-zA-Z(.;]|\s+(?![-+*/^\\]))", answer)
    if number and not re.match(r"[a-zA-Z]\b|[(]", answer[number.end() :].strip()):
        top, _, bottom = number[1].replace(" ", "").partition("/")
        if bottom.strip("0") or not bottom:
            return str(Fraction(top) / Fraction(bottom or 1))
    return re.sub(r"\s", "", answer).rstrip(".") or None


def _boxed(text: str) -> str:
    """What the braces at the start of a text hold, or nothing where they do not close."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:position]
    return ""
