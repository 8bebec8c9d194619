"""Checks for the exercises at the end of each notebook: answers go in, a verdict with its reason comes out.

To add an exercise: (1) in the notebook, a markdown cell ``### 3. Title`` with the question and its hints inside
``<details><summary>Hint</summary>``, a blank line, text, a blank line, ``</details>``; (2) a code cell with the answer as
``name = None`` and the check as its last line, so that the verdict shows; (3) the check, in the module of this package
that the notebook imports: positional arguments are the answers, annotated with what each has to be (see ``_as``);
keyword-only ones are what the truth is computed from, never a number written down; ``need`` says what a right answer
fulfils, and the check returns what it shows; anything slow happens in the check, so that an unanswered one costs nothing;
(4) the same cells, solved, in ``notebooks/solutions`` under the notebook's name; (5) the usual wrong answers in
``tests/exercises``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from html import escape
from inspect import signature
from typing import get_type_hints

_COLOURS = {"right": "#009E73", "not yet": "#D55E00", "not answered yet": "#7f7f7f"}
_WANTED = {float: "a number", int: "a number", set: "a set", list[float]: "a list of numbers", Callable: "a function",
           list[dict]: 'a list of messages, each with "role" and "content"'}  # fmt: skip


class NotYet(Exception):
    """An answer that falls short; the message says of what."""


@dataclass(frozen=True)
class Verdict:
    """What a check says: ``state`` is "right", "not yet" or "not answered yet". As a cell's last value it shows itself."""

    state: str
    message: str

    def __repr__(self) -> str:
        return f"{self.state.capitalize()}: {self.message}"

    def _repr_html_(self) -> str:
        style = f"border-left:5px solid {_COLOURS[self.state]};padding:0.3em 0.8em;max-width:52em"
        return f'<div style="{style}"><b>{self.state.capitalize()}:</b> {escape(self.message)}</div>'


def check(function: Callable[..., str]) -> Callable[..., Verdict]:
    """Make a check of a function: None is "not answered yet", and whatever an answer is or raises becomes words."""
    kinds = get_type_hints(function)
    names = [p.name for p in signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @wraps(function)
    def checked(*answers, **given) -> Verdict:
        missing = [name for name, answer in zip(names, answers, strict=True) if answer is None]
        if missing:
            return Verdict("not answered yet", f"give {' and '.join(missing)}, and run this cell again.")
        try:
            taken = [_as(kinds.get(name), answer, name) for name, answer in zip(names, answers, strict=True)]
            return Verdict("right", function(*taken, **given))
        except NotYet as shortfall:
            return Verdict("not yet", str(shortfall))
        except Exception as error:  # whatever a learner's object or function does
            return Verdict("not yet", f"the check could not use this answer ({type(error).__name__}: {error}).")

    return checked


def _as(kind: type | None, answer: object, name: str):
    """An answer as what its check asks for: a number (of Python, NumPy or torch), several, a set, a function, a class."""
    text = isinstance(answer, str | bytes)
    try:
        if kind in (float, int) and not text and not isinstance(answer, bool):
            number = float(answer)
            need(math.isfinite(number), f"{name} has to be finite.")
            need(kind is float or number.is_integer(), f"{name} has to be a whole number, not {number:g}.")
            return kind(number)
        if kind == list[float] and not text:
            return [float(number) for number in answer]
        if kind is set and isinstance(answer, Iterable):
            return {answer} if text else set(answer)
        if kind == list[dict] and all(isinstance(message, dict) for message in answer):
            return list(answer)
        if callable(answer) if kind is Callable else kind is None or kind not in _WANTED and isinstance(answer, kind):
            return answer
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    wanted = _WANTED.get(kind) or f"an object of the class {kind.__name__}"
    raise NotYet(f"give {wanted} for {name}, not {answer!r:.60} ({type(answer).__name__}).")


def need(condition: bool, otherwise: str) -> None:
    """State what a right answer fulfils, and what to tell a learner whose answer does not."""
    if not condition:
        raise NotYet(otherwise)


def unlike(answer: float, truth: float, *mistakes: tuple[float, str], near: float = 1e-9, name: str = "") -> None:
    """Tell usual mistakes apart: each is the wrong number and what is wrong about it; ``near`` is a relative distance."""
    for wrong, reason in mistakes:
        mistaken = math.isclose(answer, wrong, rel_tol=near) and not math.isclose(answer, truth, rel_tol=near)
        need(not mistaken, f"{name}{reason}")
