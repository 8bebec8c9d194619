"""Statistics against known values, refusals, and sentences that follow the numbers."""

import subprocess
import sys
from dataclasses import replace

from helpers import comparison
from helpers.comparison import NotComparable, comparability, conclusions, paired, wilson

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


def _seeds(record, shares):
    """Runs of one method, one a seed, with these shares of 20 questions right."""
    return [_scored(record, [1] * right + [0] * (20 - right), seed) for seed, right in enumerate(shares)]


def test_a_claim_about_accuracy_needs_three_seeds_that_agree(runs):
    lora, full = runs.lora.record, runs.full.record

    def accuracy_of(first, second):
        said = conclusions([*_seeds(lora, first), *_seeds(full, second)])
        return next(sentence for sentence in said if sentence.startswith("Accuracy: "))

    assert "full is better" in accuracy_of([5, 6, 5], [18, 19, 18])
    assert "lora is better" in accuracy_of([18, 19, 18], [5, 6, 5])
    assert "no difference shown" in accuracy_of([18, 2, 12], [5, 18, 12])  # a verdict that flips with the seed
    assert "no claim about the methods from 1 seed" in accuracy_of([18], [2])
    assert "no claim about the methods from 2 seeds" in accuracy_of([18, 18], [2, 2])
    whole = replace(full, training=full.training | {"trainable": 1600 * lora.training["trainable"]})
    assert "Parameters trained: full takes 1,600 times what lora takes." in conclusions([lora, whole])


def test_an_interval_over_seeds_is_students():
    assert comparison.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.303 / 3**0.5), rel=1e-3)
    assert comparison.interval([1.0, 2.0]) == pytest.approx((1.5, 12.706 * 0.5), rel=1e-3)
    centre, half = comparison.interval([4.0])
    assert centre == 4.0 and half != half  # one measurement says nothing about its spread


def test_forgetting_is_the_rise_of_a_loss_with_its_interval(runs):
    base, lora = runs.base.record, runs.lora.record
    texts = [[4.0, 2], [9.0, 3]]
    before = replace(base, evaluation=base.evaluation | {"general": {"loss": 2.6, "losses": texts}})
    after = [
        replace(lora, evaluation=lora.evaluation | {"general": {"loss": loss, "losses": [[6.0, 2], [12.0, 3]]}})
        for loss in (3.6, 3.4, 3.5)
    ]
    assert comparison.rise(after[:1], before, "general") == pytest.approx(
        (1.0, 0.0)
    )  # each text rose by one nat a token
    assert comparison.rise(after, before, "general") == pytest.approx((0.9, 4.303 * 0.1 / 3**0.5), rel=1e-3)


def test_prompts_and_training_are_compared_on_the_same_questions(runs):
    base, lora = runs.base.record, runs.lora.record
    prompts = {"instructed": {"right": [0, 1], "prompt": []}, "guess": 0.125}
    scored = [replace(_scored(base, [0, 0, 1, 1])), _scored(lora, [1, 1, 0, 0])]
    scored[0].evaluation = scored[0].evaluation | {"baselines": prompts}
    shown = comparison.against_prompts(scored)["right, %"]
    assert shown["random guess"] == "12" and shown["untouched model, instructed"] == "50"
    assert shown["untouched model, the question alone"] == "0" and shown["trained: lora"] == "100"


def test_table_has_a_column_for_each_method_and_survives_unscored_data(runs):
    records = [runs.base.record, runs.lora.record, runs.full.record]
    assert list(comparison.table(records)) == ["base", "lora", "full"]
    unscored = [replace(r, evaluation=r.evaluation | {"exact_match": None, "harder": None}) for r in records]
    assert "exact match" not in comparison.table(unscored).index


def test_comparing_needs_no_torch():
    code = "import sys, helpers.comparison, helpers.plotting, helpers.records, helpers.settings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
