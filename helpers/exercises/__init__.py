"""Checks for the exercises at the end of each notebook: answers go in, a verdict with its reason comes out.

To add an exercise: (1) in the notebook, a markdown cell ``### 3. Title`` with the question and its hints inside
``<details><summary>Hint</summary>``, a blank line, text, a blank line, ``</details>``; (2) a code cell with the answer as
``name = None`` and the check as its last line, so that the verdict shows; (3) the check, in the module of this package
that the notebook imports: positional arguments are the learner's answers, keyword-only ones what the truth is computed
from, never a number written down; ``need`` says what a right answer fulfils, and what is returned says what it shows;
anything slow happens in the check, so that an unanswered one costs nothing; (4) the same cells, solved, in
``notebooks/solutions`` under the notebook's name; (5) usual wrong answers in tests/test_exercises.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from html import escape

_COLOURS = {"right": "#009E73", "not yet": "#D55E00", "not answered yet": "#7f7f7f"}


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
    """Make a check of a function: None as an answer is "not answered yet", and whatever an answer raises becomes words."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]

    @wraps(function)
    def checked(*answers, **given) -> Verdict:
        missing = [name for name, answer in zip(names, answers, strict=True) if answer is None]
        if missing:
            return Verdict("not answered yet", f"give {' and '.join(missing)}, and run this cell again.")
        try:
            return Verdict("right", function(*answers, **given))
        except NotYet as shortfall:
            return Verdict("not yet", str(shortfall))
        except Exception as error:  # whatever a learner's object or function does
            return Verdict("not yet", f"the check could not use this answer ({type(error).__name__}: {error}).")

    return checked


def need(condition: bool, otherwise: str) -> None:
    """State what a right answer fulfils, and what to tell a learner whose answer does not."""
    if not condition:
        raise NotYet(otherwise)


def number(value, name: str = "the answer") -> float:
    """A learner's number, of Python, NumPy or torch."""
    need(not isinstance(value, bool | str), f"{name} has to be a number, not {value!r}.")
    return float(value)
