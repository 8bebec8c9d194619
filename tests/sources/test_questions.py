"""The bundled questions: right answers, new numbers and new phrasings in the test, the same rows on any machine."""

import hashlib
import json
import re

from helpers.sources import answer_of, make_splits
from helpers.sources.questions import families

import pytest

FAMILIES = families()
SIZES = {"train": 960, "validation": 80, "test": 120, "harder": 40}


@pytest.fixture(scope="module")
def splits():
    return make_splits(*SIZES.values())


def phrasings(row: dict, of: str) -> bool:
    """Whether a row's question is in one of the family's phrasings of this kind."""
    patterns = [re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(phrasing)) for phrasing in FAMILIES[row["family"]][of]]
    return any(re.fullmatch(pattern, row["question"]) for pattern in patterns)


def test_each_split_has_its_size_and_every_family(splits):
    assert {name: len(rows) for name, rows in splits.items()} == SIZES
    assert all({row["family"] for row in rows} == FAMILIES.keys() for rows in splits.values())


def test_every_worked_answer_is_right(splits):
    """Each ``a x b = c`` of the working is computed again, and the last result is the answer."""
    for row in [row for rows in splits.values() for row in rows]:
        results = []
        for left, operator, right, result in re.findall(r"(\d+) ([x+/-]) (\d+) = (\d+)", row["answer"]):
            a, b = int(left), int(right)
            assert {"x": a * b, "+": a + b, "-": a - b, "/": a / b if b else None}[operator] == int(result), row
            results.append(result)
        assert results and answer_of(row["answer"]) == results[-1], row


def test_no_problem_is_in_two_splits_in_any_order_of_its_numbers(splits):
    def problem(row: dict) -> tuple:
        return row["family"], *sorted(re.findall(r"\d+|fp32|bf16|int8", row["question"]))

    problems = {name: {problem(row) for row in rows} for name, rows in splits.items()}
    for first, second in [(a, b) for a in splits for b in splits if a < b]:
        assert not problems[first] & problems[second]
    assert len({row["question"] for row in splits["train"]}) == 960


def test_the_test_asks_in_phrasings_that_training_never_saw(splits):
    for name, of in (("train", "phrasings"), ("validation", "phrasings"), ("test", "held_out"), ("harder", "held_out")):
        other = {"phrasings": "held_out", "held_out": "phrasings"}[of]
        assert all(phrasings(row, of) and not phrasings(row, other) for row in splits[name])


def test_the_same_seed_gives_the_same_rows(splits):
    assert make_splits(*SIZES.values()) == splits != make_splits(*SIZES.values(), seed=1)
    assert hashlib.sha256(json.dumps(splits["test"], sort_keys=True).encode()).hexdigest()[:12] == FIRST_DIGITS


FIRST_DIGITS = "aa223ea5f1b0"


def test_too_many_rows_are_refused():
    with pytest.raises(ValueError, match="ask for fewer rows"):
        make_splits(100, 0, 100_000)
