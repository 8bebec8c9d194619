"""Checks for the exercises at the end of each notebook: answers go in, a verdict with its reason comes out.

To add an exercise: (1) in the notebook, a markdown cell ``### 3. Title`` with the question and its hints inside
``<details><summary>Hint</summary>``, a blank line, text, a blank line, ``</details>``; (2) a code cell with the answer as
``name = None`` and the check as its last line, so that the verdict shows; (3) the check, in the module of this package
that the notebook imports: positional arguments are the answers, annotated with a kind of ``_WANTED`` or a class; keyword-only
ones are what the truth is computed from, never a number written down. It calls ``need`` or ``expect`` and returns what a
right answer shows; anything slow happens in it, so that an unanswered one costs nothing; (4) the same cells, solved, in
``notebooks/solutions`` under the notebook's name; (5) the usual wrong answers in ``tests/exercises``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from html import escape
from inspect import signature
from typing import get_origin

_COLOURS = {"right": "#009E73", "not yet": "#D55E00", "not answered yet": "#7f7f7f"}
_WANTED = {float: "a number", int: "a whole number", set: "a set", str: "a text", Callable: "a function"}
_WANTED |= {list[float]: "a list of numbers", list[dict]: 'a list of messages, each with "role" and "content",'}


class NotYet(Exception):
    """An answer that is not right yet; the message says why."""

    state = "not yet"


class Unanswered(NotYet):
    """A function or a value that was left as the notebook gives it; the message says what to give."""

    state = "not answered yet"


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


def expect(answer: float, truth: float, otherwise: str, mistakes: dict[float, str], near: float = 1e-9) -> None:
    """Compare a number with the truth, up to a relative distance; each usual wrong number has a reason of its own."""
    if not math.isclose(answer, truth, rel_tol=near):
        reasons = (reason for wrong, reason in mistakes.items() if math.isclose(answer, wrong, rel_tol=near))
        raise NotYet(next(reasons, otherwise))


def check(function: Callable[..., str]) -> Callable[..., Verdict]:
    """Make a check of a function: None is "not answered yet", and whatever an answer is or raises becomes words."""
    parameters = signature(function).parameters.values()
    kinds = {p.name: p.annotation for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    wanted = [f"{_WANTED.get(k) or f'an object of the class {k.__name__}'} for {name}" for name, k in kinds.items()]

    @wraps(function)
    def checked(*answers, **given) -> Verdict:
        if missing := [words for words, answer in zip(wanted, answers, strict=True) if answer is None]:
            return Verdict("not answered yet", f"give {' and '.join(missing)}, and run this cell again.")
        try:
            return Verdict("right", function(*map(_as, kinds.values(), answers, wanted), **given))
        except NotYet as reason:
            return Verdict(reason.state, str(reason))
        except Exception as error:  # whatever a learner's object or function does
            return Verdict("not yet", f"the check could not use this answer ({type(error).__name__}: {error}).")

    return checked


def _as(kind: type, answer: object, wanted: str) -> object:
    """An answer as its check asks for it; numbers of Python, NumPy and torch become Python's."""
    try:
        if kind == list[float] and not isinstance(answer, str):
            return [float(part) for part in answer]
        if kind in (int, float):
            if not isinstance(answer, str | bool) and math.isfinite(answer) and kind(answer) == answer:
                return kind(answer)
        elif isinstance(answer, get_origin(kind) or kind):
            return answer
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise NotYet(f"give {wanted}, not {answer!r:.60} ({type(answer).__name__}).")
