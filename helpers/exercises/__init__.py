"""Checks for the exercises at the end of each notebook: answers go in, a verdict with its reason comes out.

To add an exercise: (1) in the notebook, a markdown cell ``### 3. Title`` with the question and its hints inside
``<details><summary>Hint</summary>``, a blank line, text, a blank line, ``</details>``; (2) a code cell with the answer as
``name = None`` and the check as its last line, so that the verdict shows; (3) the check, in the module of this package
that the notebook imports: positional arguments are the answers, annotated with one of ``_KINDS`` or a class; keyword-only
ones are what the truth is computed from, never a number written down. It raises :class:`NotYet` through ``need`` or
``expect`` and returns what a right answer shows; anything slow happens in it, so that an unanswered one costs nothing;
(4) the same cells, solved, in ``notebooks/solutions`` under the notebook's name; (5) the usual wrong answers in
``tests/exercises``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from html import escape
from inspect import signature
from typing import get_type_hints

_COLOURS = {"right": "#009E73", "not yet": "#D55E00", "not answered yet": "#7f7f7f"}
_BUILT = {float: "a number", int: "a whole number", set: "a set", list[float]: "a list of numbers"}
_BUILT |= {list[dict]: 'a list of messages, each with "role" and "content",'}
_WANTED = _BUILT | {str: "a text", Callable: "a function", None: ""}  # all others: an object of that class


class NotYet(Exception):
    """An answer that is not right yet; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """The result of a check: ``state`` is "right", "not yet" or "not answered yet". As a cell's last value it shows itself."""

    state: str
    message: str

    def __repr__(self) -> str:
        return f"{self.state.capitalize()}: {self.message}"

    def _repr_html_(self) -> str:
        style = f"border-left:5px solid {_COLOURS[self.state]};padding:0.3em 0.8em;max-width:52em"
        return f'<div style="{style}"><b>{self.state.capitalize()}:</b> {escape(self.message)}</div>'


def need(condition: object, otherwise: str) -> None:
    """State a condition for a right answer, and what to tell a learner whose answer does not meet it."""
    if not condition:
        raise NotYet(otherwise)


def expect(answer: float, truth: float, otherwise: str, *mistakes: tuple[float, str], near: float = 1e-9) -> None:
    """Compare a number with the truth. A common mistake gets its own reason, any other wrong number ``otherwise``.

    Args:
        mistakes: pairs of a wrong number and its reason.
        near: relative distance up to which two numbers are equal.
    """
    if not math.isclose(answer, truth, rel_tol=near):
        reasons = (reason for wrong, reason in mistakes if math.isclose(answer, wrong, rel_tol=near))
        raise NotYet(next(reasons, otherwise))


def check(function: Callable[..., str]) -> Callable[..., Verdict]:
    """Make a check of a function: None is "not answered yet", and whatever an answer is or raises becomes words."""
    hints = get_type_hints(function)
    names = [p.name for p in signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]

    @wraps(function)
    def checked(*answers, **given) -> Verdict:
        pairs = dict(zip(names, answers, strict=True))
        if missing := [_wanted(hints.get(name), name) for name, answer in pairs.items() if answer is None]:
            return Verdict("not answered yet", f"give {' and '.join(missing)}, and run this cell again.")
        try:
            return Verdict("right", function(*(_as(hints.get(n), a, n) for n, a in pairs.items()), **given))
        except NotYet as reason:
            return Verdict("not yet", str(reason))
        except Exception as error:  # whatever a learner's object or function does
            return Verdict("not yet", f"the check could not use this answer ({type(error).__name__}: {error}).")

    return checked


def _wanted(kind: type | None, name: str) -> str:
    words = _WANTED.get(kind, f"an object of the class {getattr(kind, '__name__', kind)}")
    return f"{words} for {name}" if words else name


def _as(kind: type | None, answer: object, name: str) -> object:
    """An answer as its check asks for it: a number (of Python, NumPy or torch), several, a set, a function, a class."""
    text = isinstance(answer, str | bytes | bool)
    try:
        if kind is set:
            return {answer} if text else set(answer)
        if kind == list[float] and not text:
            return [float(part) for part in answer]
        if kind == list[dict] and all(isinstance(part, dict) for part in answer):
            return list(answer)
        if kind in (float, int) and not text and math.isfinite(float(answer)) and kind(answer) == float(answer):
            return kind(answer)
        if kind is None or kind not in _BUILT and isinstance(answer, kind):
            return answer
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise NotYet(f"give {_wanted(kind, name)}, not {answer!r:.60} ({type(answer).__name__}).")
