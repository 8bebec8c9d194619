"""The bundled data: right answers, disjoint splits, a held-out phrasing, the same rows everywhere."""

import hashlib
import json
import re

from helpers.sources import answer_of, make_splits
from helpers.sources.questions import FAMILIES, HELD_OUT_FAMILY

import pytest


@pytest.fixture(scope="module")
def splits():
    return make_splits(960, 80, 120, 40)


def test_eight_families_with_several_phrasings():
    assert len(FAMILIES) >= 8
    assert all(len(family.phrasings) >= 3 for family in FAMILIES)


def test_sizes(splits):
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 960, "validation": 80, "test": 120, "harder": 40,
    }  # fmt: skip


def test_every_worked_answer_is_right(splits):
    """Each ``a x b = c`` of the working is computed again, and the last result is the answer."""
    checked = 0
    for rows in splits.values():
        for row in rows:
            results = []
            for left, operator, right, result in re.findall(r"(\d+) ([x+/-]) (\d+) = (\d+)", row["answer"]):
                a, b = int(left), int(right)
                value = {"x": a * b, "+": a + b, "-": a - b, "/": a / b if b else None}[operator]
                assert value == int(result), row
                results.append(result)
            assert results and answer_of(row["answer"]) == results[-1], row
            checked += 1
    assert checked == 1200


def test_no_question_and_no_problem_is_in_two_splits(splits):
    problems = {
        name: {(row["family"], row["answer"]) for row in rows} for name, rows in splits.items()
    }  # the worked answer holds the operands
    for first in splits:
        for second in splits:
            if first < second:
                assert not problems[first] & problems[second]
    assert len({row["question"] for row in splits["train"]}) == 960


def test_the_harder_phrasing_is_nowhere_else(splits):
    words = {row["question"].split()[0:3].__str__() for row in splits["harder"]}
    assert len(words) == 1 and {row["family"] for row in splits["harder"]} == {HELD_OUT_FAMILY}
    for name in ("train", "validation", "test"):
        assert not any(row["question"].startswith("My job holds") for row in splits[name])


def test_the_same_seed_gives_the_same_rows_on_any_machine(splits):
    text = json.dumps(splits["test"], sort_keys=True).encode()
    assert make_splits(960, 80, 120, 40) == splits
    assert make_splits(960, 80, 120, 40, seed=1) != splits
    assert hashlib.sha256(text).hexdigest().startswith(FIRST_DIGITS)


FIRST_DIGITS = "13eebb36739a"


def test_too_many_rows_are_refused():
    with pytest.raises(ValueError, match="ask for fewer rows"):
        make_splits(100_000, 0, 10)
