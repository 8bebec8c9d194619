"""The bundled data set: short questions on the arithmetic of fine-tuning, with worked, checkable answers.

Every answer ends in ``The answer is: N`` with an integer N, so a reply is scored exactly and by a machine.
A *problem* is a family plus its operands; a *question* is a problem in one phrasing. Problems are dealt out to
the splits first and phrased afterwards, so no numbers of a test question were seen in training under other words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

ANSWER_MARK = "The answer is:"
HELD_OUT_FAMILY = "free_memory"  # its last phrasing appears in the `harder` split and nowhere else

_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Family:
    """One kind of problem: its operands, the ways to ask, and the worked answer.

    ``phrasings`` and ``working`` are ``str.format`` templates over the operand names plus ``answer``
    (and whatever intermediate values ``operands`` yields).
    """

    name: str
    operands: list[dict]
    phrasings: tuple[str, ...]
    working: str


def _weights() -> Iterator[dict]:
    for (precision, size), n in product(_BYTES.items(), range(1, 65)):
        yield {"n": n, "precision": precision, "bytes": size, "answer": n * size}


def _adamw() -> Iterator[dict]:
    yield from ({"n": n, "answer": 8 * n} for n in range(1, 61))


def _four_times() -> Iterator[dict]:
    yield from ({"w": w, "answer": 4 * w} for w in range(1, 81))


def _lora_parameters() -> Iterator[dict]:
    for r, a, b in product((1, 2, 4, 8), range(100, 1000, 100), range(100, 1000, 100)):
        yield {"r": r, "a": a, "b": b, "sum": a + b, "answer": r * (a + b)}


def _steps() -> Iterator[dict]:
    for batch, steps in product((2, 4, 5, 8, 10), range(20, 310, 10)):
        yield {"batch": batch, "rows": batch * steps, "answer": steps}


def _effective_batch() -> Iterator[dict]:
    for micro, accumulation, devices in product((1, 2, 3, 4, 6, 8), (2, 3, 4, 5, 8, 10), (2, 3, 4, 8)):
        both = micro * accumulation
        yield {"m": micro, "a": accumulation, "d": devices, "both": both, "answer": both * devices}


def _free_memory() -> Iterator[dict]:
    for total, used in product((16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256), range(10, 250, 10)):
        if used < total:
            yield {"total": total, "used": used, "answer": total - used}


def _tokens_per_step() -> Iterator[dict]:
    for rows, length in product(range(2, 11), range(100, 1300, 100)):
        yield {"rows": rows, "length": length, "answer": rows * length}


def _lora_scale() -> Iterator[dict]:
    for r, scale in product((2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 32), range(1, 13)):
        yield {"r": r, "alpha": r * scale, "answer": scale}


def _run_time() -> Iterator[dict]:
    for steps, seconds in product(range(20, 420, 20), (2, 3, 4, 5, 6)):
        yield {"steps": steps, "seconds": seconds, "answer": steps * seconds}


_TABLE: tuple[tuple[str, object, tuple[str, ...], str], ...] = (
    (
        "weights",
        _weights,
        (
            "How many GB do the weights of a {n}B model take in {precision}?",
            "A model has {n} billion parameters in {precision}. How many GB is that?",
            "What is the size in GB of {n}B weights stored as {precision}?",
        ),
        "{precision} takes {bytes} bytes. {n} x {bytes} = {answer}.",
    ),
    (
        "adamw_states",
        _adamw,
        (
            "How many GB of AdamW states does full tuning of a {n}B model keep in fp32?",
            "AdamW stores two fp32 moments per parameter. How many GB for {n}B parameters?",
            "You tune all {n} billion parameters with AdamW. How many GB are its states?",
        ),
        "Two moments take 8 bytes. {n} x 8 = {answer}.",
    ),
    (
        "four_times",
        _four_times,
        (
            "The fp32 weights take {w} GB. How many GB are weights, gradients and AdamW states together?",
            "How many GB does full fp32 tuning need before activations if the weights are {w} GB?",
            "A model of {w} GB in fp32 is tuned in full with AdamW. What does it hold in GB, without activations?",
        ),
        "Weights, gradients and two moments: 4 x {w} = {answer}.",
    ),
    (
        "lora_parameters",
        _lora_parameters,
        (
            "How many parameters does LoRA of rank {r} add to a {a} x {b} layer?",
            "A linear layer maps {a} features to {b}. How many weights has its rank {r} adapter?",
            "LoRA with r = {r} on a matrix of {a} by {b}: how many trainable parameters?",
        ),
        "{a} + {b} = {sum}. {r} x {sum} = {answer}.",
    ),
    (
        "steps_per_epoch",
        _steps,
        (
            "How many steps is one epoch of {rows} rows at batch size {batch}?",
            "You have {rows} rows and a batch size of {batch}. How many steps make an epoch?",
            "With {batch} rows a step, how many steps pass over {rows} rows once?",
        ),
        "{rows} / {batch} = {answer}.",
    ),
    (
        "effective_batch",
        _effective_batch,
        (
            "Batch {m} per device, {a} accumulation steps, {d} devices: what is the effective batch?",
            "What is the global batch size with {d} GPUs, {m} rows each and {a} accumulation steps?",
            "{d} devices take {m} rows at a time and accumulate {a} times. How many rows per update?",
        ),
        "{m} x {a} = {both}. {both} x {d} = {answer}.",
    ),
    (
        HELD_OUT_FAMILY,
        _free_memory,
        (
            "A GPU has {total} GB and {used} GB are in use. How many GB are free?",
            "How many GB are left on a {total} GB card after loading {used} GB?",
            "{used} GB of a {total} GB accelerator are taken. How much is free, in GB?",
            "My job holds {used} GB. What can a colleague still use of the {total} GB on this device, in GB?",
        ),
        "{total} - {used} = {answer}.",
    ),
    (
        "tokens_per_step",
        _tokens_per_step,
        (
            "How many tokens are in a batch of {rows} rows of {length} tokens?",
            "Each step takes {rows} sequences of {length} tokens. How many tokens a step?",
            "You pack {rows} rows of length {length}. How many tokens does one step see?",
        ),
        "{rows} x {length} = {answer}.",
    ),
    (
        "lora_scale",
        _lora_scale,
        (
            "LoRA uses alpha = {alpha} and r = {r}. By what factor is the update scaled?",
            "What is the scale of a LoRA adapter with r = {r} and alpha = {alpha}?",
            "An adapter has rank {r} and alpha {alpha}. What multiplies B A?",
        ),
        "{alpha} / {r} = {answer}.",
    ),
    (
        "run_time",
        _run_time,
        (
            "A step takes {seconds} seconds. How many seconds do {steps} steps take?",
            "How many seconds does a run of {steps} steps last at {seconds} seconds a step?",
            "Training needs {steps} steps of {seconds} s each. How many seconds is that?",
        ),
        "{steps} x {seconds} = {answer}.",
    ),
)

FAMILIES: tuple[Family, ...] = tuple(
    Family(name, list(operands()), phrasings, working) for name, operands, phrasings, working in _TABLE
)


def _row(family: Family, operands: dict, phrasing: int) -> dict:
    answer = f"{family.working.format(**operands)} {ANSWER_MARK} {operands['answer']}"
    return {"question": family.phrasings[phrasing].format(**operands), "answer": answer, "family": family.name}


def make_splits(train: int, validation: int, test: int, harder: int = 0, seed: int = 0) -> dict[str, list[dict]]:
    """Generate the bundled data set.

    Args:
        train, validation, test, harder: rows in each split. The first three mix all families in equal parts;
            ``harder`` asks problems of :data:`HELD_OUT_FAMILY` in a phrasing that no other split contains.
        seed: the same seed gives the same rows on any machine and Python version.

    Returns:
        A list of rows for each split; a row has ``question``, ``answer`` and ``family``.

    Raises:
        ValueError: if a split asks for more rows than the families can give.
    """
    rng = random.Random(seed)
    sizes = {"harder": harder, "test": test, "validation": validation, "train": train}
    splits: dict[str, list[dict]] = {name: [] for name in sizes}
    for position, family in enumerate(FAMILIES):
        held_out = family.name == HELD_OUT_FAMILY
        usual = range(len(family.phrasings) - held_out)
        problems = rng.sample(family.operands, len(family.operands))
        for split, rows in sizes.items():
            if split == "harder":
                share = rows if held_out else 0
            else:
                share = rows // len(FAMILIES) + (position < rows % len(FAMILIES))
            if split == "train":  # what is left, in every phrasing
                questions = rng.sample(list(product(problems, usual)), k=min(share, len(problems) * len(usual)))
            else:
                taken, problems = problems[:share], problems[share:]
                phrasing = len(family.phrasings) - 1 if split == "harder" else None
                questions = [(p, rng.choice(usual) if phrasing is None else phrasing) for p in taken]
            if len(questions) < share:
                raise ValueError(
                    f"the bundled data set cannot give {rows} rows for the {split} split: the family "
                    f"{family.name!r} has {len(family.operands)} problems; ask for fewer rows"
                )
            splits[split] += [_row(family, operands, phrasing) for operands, phrasing in questions]
    for rows in splits.values():
        rng.shuffle(rows)
    return splits


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
