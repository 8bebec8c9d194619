"""A check turns whatever an answer is, or does, into words."""

from collections.abc import Callable

from helpers.exercises import Verdict, check, expect, machine, need, serving
from helpers.exercises import data as rows

import numpy as np
import pytest
import torch


def test_a_check_turns_whatever_an_answer_does_into_words():
    @check
    def two(first: float, second: float, *, limit) -> str:
        need(first + second < limit, "too much")
        return "fine"

    assert repr(two(None, 1, limit=3)) == "Not answered yet: give a number for first, and run this cell again."
    assert two(1, 1, limit=3) == Verdict("right", "fine")
    assert two(2, 2, limit=3) == Verdict("not yet", "too much")
    assert "TypeError" in two(1, 1, limit="3").message
    assert "&lt;b&gt;" in Verdict("right", "<b>")._repr_html_()


@check
def of_each_kind(number: float, whole: int, several: list[float], names: set, function: Callable, text: str) -> str:
    return f"{number} {whole} {several} {sorted(names)} {function(1)} {text}"


GOOD = {"number": np.float32(2.5), "whole": torch.tensor(3.0), "several": torch.tensor([1.0, 2.0]), "names": {"a"},
        "function": abs, "text": "b"}  # fmt: skip


def test_numbers_of_any_library_are_understood():
    assert of_each_kind(*GOOD.values()) == Verdict("right", "2.5 3 [1.0, 2.0] ['a'] 1 b")


@pytest.mark.parametrize(
    ("name", "wrong", "words"),
    [
        ("number", "8", "give a number for number, not '8' (str)"),
        ("number", [8], "give a number for number, not [8] (list)"),
        ("number", True, "not True (bool)"),
        ("number", torch.ones(2), "give a number for number"),
        ("number", float("nan"), "give a number for number, not nan (float)"),
        ("number", 10**400, "give a number"),
        ("whole", 2.5, "give a whole number for whole, not 2.5 (float)"),
        ("whole", True, "not True (bool)"),
        ("several", "12", "give a list of numbers"),
        ("several", 12, "give a list of numbers"),
        ("several", [None], "give a list of numbers"),
        ("names", 3, "give a set for names"),
        ("names", ["a"], "give a set for names, not ['a'] (list)"),
        ("function", 3, "give a function for function, not 3 (int)"),
        ("text", 3, "give a text for text, not 3 (int)"),
    ],
)
def test_an_answer_of_another_kind_is_told_what_is_wanted(name, wrong, words):
    verdict = of_each_kind(*(GOOD | {name: wrong}).values())
    assert verdict.state == "not yet" and words in verdict.message


def test_what_the_checks_of_the_notebooks_say_to_a_list_or_text(tokenizer, data):
    assert "give a number for plain" in machine.bytes_kept([8], 12).message
    assert "class Example" in rows.never_stops("row", example=data.train[0], tokenizer=tokenizer).message
    assert "give a list of messages" in rows.two_turns("hello", 2, tokenizer=tokenizer).message
    assert "give a function for read" in serving.whole_answers("text", references=[], limit=3).message


def test_a_usual_mistake_that_happens_to_be_right_is_no_mistake():
    expect(4, 4, "other", {4: "not reached"})
    with pytest.raises(Exception, match="half"):
        expect(2.01, 4, "other", {2: "half"}, near=0.01)
    with pytest.raises(Exception, match="other"):
        expect(3, 4, "other", {2: "half"}, near=0.01)
