"""The scored questions: right answers, disjoint problems, held-out phrasings of each family, the same rows everywhere."""

import hashlib
import json
import re
from difflib import SequenceMatcher
from itertools import combinations

from helpers.sources import answer_of, make_splits, practice_questions
from helpers.sources.questions import FAMILIES

import pytest


@pytest.fixture(scope="module")
def splits():
    return make_splits(960, 80, 120, 40)


def template(row: dict) -> str:
    return re.sub(r"\d+|fp32|bf16|int8", "#", row["question"])


def numbers(row: dict) -> tuple:
    return row["family"], *sorted(map(int, re.findall(r"(?<![a-z])\d+", row["question"])))


def test_every_family_has_phrasings_that_training_never_sees():
    assert len(FAMILIES) == 10
    assert all(
        len(f["phrasings"]) == 5 and len(f["held_out"]) == 2 and len(f["practice"]) == 5 for f in FAMILIES.values()
    )


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


def test_no_two_splits_share_a_problem_in_any_order_of_its_numbers(splits):
    problems = {
        name: {(*numbers(row), *re.findall("fp32|bf16|int8", row["question"])) for row in rows}
        for name, rows in splits.items()
    }
    for first, second in combinations(splits, 2):
        assert not problems[first] & problems[second], (first, second)
    assert len({row["question"] for row in splits["train"]}) == 960


def test_the_test_asks_each_family_in_phrasings_that_training_never_sees(splits):
    seen = {template(row) for name in ("train", "validation") for row in splits[name]}
    for name in ("test", "harder"):
        assert not seen & {template(row) for row in splits[name]}
        assert {row["family"] for row in splits[name]} == set(FAMILIES)


def test_each_harder_question_states_a_number_larger_than_any_of_its_family(splits):
    largest: dict[str, int] = {}
    for row in splits["train"] + splits["validation"] + splits["test"]:
        largest[row["family"]] = max(largest.get(row["family"], 0), numbers(row)[-1])
    assert all(numbers(row)[-1] > largest[row["family"]] for row in splits["harder"])


def test_the_same_seed_gives_the_same_rows_on_any_machine(splits):
    text = json.dumps(splits["test"], sort_keys=True).encode()
    assert make_splits(960, 80, 120, 40) == splits
    assert make_splits(960, 80, 120, 40, seed=1) != splits
    assert hashlib.sha256(text).hexdigest().startswith(FIRST_DIGITS)


FIRST_DIGITS = "aa223ea5f1b0"


def test_too_many_rows_are_refused():
    with pytest.raises(ValueError, match="ask for fewer rows"):
        make_splits(100_000, 0, 10)


def test_practice_asks_new_numbers_in_phrasings_of_its_own(splits):
    held_out = [row for name in ("validation", "test", "harder") for row in splits[name]]
    rows = practice_questions(60, {row["question"] for row in held_out})
    assert len(rows) == len({row["question"] for row in rows}) == 600
    assert not {numbers(row) for row in rows} & {numbers(row) for row in held_out if row["family"] != "weights"}
    assert not {template(row) for row in rows} & {template(row) for some in splits.values() for row in some}
    written = [(words["practice"], words["phrasings"] + words["held_out"]) for words in FAMILIES.values()]
    alike = max(SequenceMatcher(None, a, b).ratio() for new, known in written for a in new for b in known)
    assert alike < 0.85
