"""Statistics against known values, refusals, and sentences that follow the numbers."""

import subprocess
import sys
from dataclasses import replace

from helpers import comparison
from helpers.comparison import NotComparable, comparability, conclusions, paired, wilson
from helpers.records import load_reference

import pytest


def test_wilson_against_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I: 81/263, 15/148, 0/20 and 1/29
    for right, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right, total) == pytest.approx((low, high), abs=5e-5)


def test_sign_test():
    assert paired([1] * 9 + [0], [0] * 9 + [1])["p"] == pytest.approx(22 / 1024)
    assert paired([1, 1, 0, 0], [1, 0, 1, 0]) == {"both": 1, "only_first": 1, "only_second": 1, "neither": 1, "p": 1.0}
    assert paired([1] * 5, [1] * 5)["p"] == 1.0
    assert paired([3, 3, 3, 0], [0, 0, 0, 3])["only_first"] == 3  # seeds count a question once
    with pytest.raises(ValueError, match="length"):
        paired([1], [1, 0])


def test_equal_runs_are_comparable(runs):
    shared = comparability([runs.base.record, runs.lora.record, runs.full.record])
    assert shared["order of rows"].startswith("the same")


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("model", {"fingerprint": "0"}, "base model differ"),
        ("evaluation", {"fingerprint": "0"}, "evaluation rows differ"),
        ("settings", {"max_new_tokens": 1}, "longest answer differ"),
        ("data", {"fingerprints": {"train": "0"}}, "training rows differ"),
        ("data", {"order": "0"}, "order of the rows differs"),
        ("training", {"supervised_tokens": 1}, "supervised tokens differ"),
        ("device", {"name": "another"}, "device differ"),
        ("decisions", {"precision": {"value": "fp16"}}, "precision differ"),
    ],
)
def test_other_runs_are_refused_with_what_differs(runs, part, change, words):
    other = replace(runs.full.record, **{part: getattr(runs.full.record, part) | change})
    with pytest.raises(NotComparable, match=words):
        comparability([runs.lora.record, other])


def test_threads_matter_where_a_speed_was_measured(runs):
    """A run beside others, with fewer threads and no speed, may stand with the measured ones; a measured one may not."""
    lora, full = runs.lora.record, runs.full.record
    fewer = full.device | {"name": full.device["name"].partition(", ")[0] + ", 77 threads"}
    with pytest.raises(NotComparable, match="device whose speed was measured differ.*77 threads"):
        comparability([lora, replace(full, device=fewer)])
    comparability([lora, replace(full, device=fewer, training=full.training | {"tokens_per_second": None})])


def _scored(record, right: list[int], seed: int = 0):
    return replace(record, seed=seed, evaluation=record.evaluation | {"exact_match": right})


def test_conclusions_follow_the_numbers(runs):
    lora, full = runs.lora.record, runs.full.record
    worse, better = [1] * 5 + [0] * 15, [1] * 18 + [0] * 2
    assert any("full is better" in s for s in conclusions([_scored(lora, worse), _scored(full, better)]))
    assert any("lora is better" in s for s in conclusions([_scored(lora, better), _scored(full, worse)]))
    assert any("no difference shown" in s for s in conclusions([_scored(lora, worse), _scored(full, worse)]))
    whole = replace(full, training=full.training | {"trainable": 1600 * lora.training["trainable"]})
    assert "Parameters trained: full takes 1,600 times what lora takes." in conclusions([lora, whole])


def test_conclusions_say_on_how_many_seeds_they_rest(runs):
    lora, full = runs.lora.record, runs.full.record
    one = conclusions([_scored(lora, [1, 0]), _scored(full, [0, 1])])
    three = conclusions([_scored(r, [1, 0], seed) for r in (lora, full) for seed in range(3)])
    assert any("1 seed:" in s for s in one) and not any("seed" in s for s in three)


def test_seeds_are_not_mistaken_for_more_questions(runs):
    """Three identical seeds say no more about the questions than one."""
    lora, full = runs.lora.record, runs.full.record
    a, b = [1] * 4 + [0], [0] * 5
    once, thrice = (
        next(
            s
            for s in conclusions([_scored(r, x, seed) for r, x in ((lora, a), (full, b)) for seed in range(n)])
            if "p =" in s
        )
        for n in (1, 3)
    )
    assert once.split("p = ")[1] == thrice.split("p = ")[1]


def test_table_has_a_column_for_each_method_and_survives_unscored_data(runs):
    records = [runs.base.record, runs.lora.record, runs.full.record]
    assert list(comparison.table(records)) == ["base", "lora", "full"]
    shipped = load_reference("small-cpu")
    assert list(comparison.table(shipped)) == ["base (reference)", "lora (reference)", "full (reference)"]
    assert all(record.note.startswith("reference record, not your run") for record in shipped)
    unscored = [replace(r, evaluation=r.evaluation | {"exact_match": None, "harder": None}) for r in records]
    assert "exact match" not in comparison.table(unscored).index


def test_comparing_needs_no_torch():
    code = "import sys, helpers.comparison, helpers.plotting, helpers.records, helpers.settings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
