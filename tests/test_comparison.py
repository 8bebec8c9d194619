"""Statistics against known values, refusals, and sentences that follow the numbers."""

import random
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
    with pytest.raises(ValueError, match="longer"):
        paired([1], [1, 0])


def test_equal_runs_are_comparable(runs):
    shared = comparability([runs.base.record, runs.lora.record, runs.full.record])
    assert shared["order of the rows, seed 0"] == runs.lora.record.data["order"]


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("model", {"fingerprint": "0"}, "base model differ"),
        ("evaluation", {"fingerprint": "0"}, "evaluation rows differ"),
        ("settings", {"max_new_tokens": 1}, "longest answer differ"),
        ("data", {"fingerprints": {"train": "0"}}, "training rows differ"),
        ("data", {"order": "0"}, "order of the rows, seed 0 differ"),
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


def _seeds(runs, lora: list[list[int]], full: list[list[int]]) -> list:
    pairs = [(runs.lora.record, lora), (runs.full.record, full)]
    return [_scored(record, right, seed) for record, each in pairs for seed, right in enumerate(each)]


def _verdict(records) -> str:
    return next(s for s in conclusions(records) if s.startswith("Accuracy:"))


def test_conclusions_follow_the_numbers_over_three_seeds(runs):
    low, high = [[1] * n + [0] * (20 - n) for n in (5, 6, 4)], [[1] * n + [0] * (20 - n) for n in (18, 17, 18)]
    assert "full fine-tuning is better" in _verdict(_seeds(runs, low, high))
    assert "LoRA is better" in _verdict(_seeds(runs, high, low))
    assert "cannot be decided" in _verdict(_seeds(runs, low, low))
    full = runs.full.record
    whole = replace(full, training=full.training | {"trainable": 1600 * runs.lora.record.training["trainable"]})
    assert "Full fine-tuning trains 1,600 times as many parameters as LoRA." in conclusions([runs.lora.record, whole])


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_never_give_a_verdict_on_methods(runs, seeds):
    said = _verdict(_seeds(runs, [[1] * 20] * seeds, [[0] * 20] * seeds))
    assert "better" not in said and f"with {seeds} seed" in said and "three seeds or more" in said


def test_seeds_that_turn_the_verdict_round_show_no_difference(runs):
    much, little = [1] * 18 + [0] * 2, [1] * 4 + [0] * 16
    records = _seeds(runs, [much, little, much], [little, much, little])
    found = comparison.verdicts(records)
    assert list(found["this seed says"]) == ["LoRA is better", "full fine-tuning is better", "LoRA is better"]
    assert (found["p"] < 0.001).all() and "cannot be decided" in _verdict(records)


def test_an_interval_over_seeds_is_students(runs):
    assert comparison.over_seeds([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - 2.4843, 2 + 2.4843), abs=1e-4)
    assert comparison.over_seeds([0.5])[1:] == (-float("inf"), float("inf"))


def test_the_bootstrap_covers_a_known_change_and_narrows_with_items():
    rng = random.Random(1)
    widths = []
    for n in (25, 400):
        before = [(rng.gauss(20, 2), 10) for _ in range(n)]
        after = [[(loss + 10 * rng.gauss(0.3, 0.2), 10) for loss, _ in before] for _ in range(3)]
        mean, low, high = comparison.bootstrap(before, after)
        assert low < 0.3 < high and low < mean < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert comparison.bootstrap([(4, 2), (8, 2)], [[(6, 2), (10, 2)]]) == pytest.approx((1, 1, 1))


def test_gain_stands_beside_forgetting_for_every_rank_and_rate(runs):
    base, lora, full = (run.record for run in (runs.base, runs.lora, runs.full))
    other = replace(lora, settings=lora.settings | {"rank": 2})
    points = comparison.gain_and_forgetting([base, lora, replace(lora, seed=1), other, full], "loss")
    assert list(points["seeds"]) == [2, 1, 1] and list(points["method"]) == ["lora", "lora", "full"]
    assert points["gain"][2] == pytest.approx(full.evaluation["loss"] - base.evaluation["loss"], abs=1e-4)
    change = full.evaluation["general"]["loss"] - base.evaluation["general"]["loss"]
    assert points["forgetting_low"][2] < change < points["forgetting_high"][2]
    without = replace(base, evaluation={k: v for k, v in base.evaluation.items() if k != "general"})
    with pytest.raises(NotComparable, match="no record of the untouched base"):
        comparison.gain_and_forgetting([without, lora])


def test_families_and_baselines_count_what_the_records_hold(runs):
    records = [run.record for run in (runs.base, runs.lora, runs.full)]
    families = comparison.by_family(records)
    assert families.groupby("method")["questions"].sum().to_dict() == dict.fromkeys(("base", "lora", "full"), 20)
    ways = comparison.baselines(records).set_index("way")
    assert list(ways.index) == [
        "random guess",
        "base, asked as trained",
        "base, instructed",
        "base, six examples",
        "base, three of the family",
        "lora",
        "full",
    ]
    sampled = ways.drop("random guess")  # whose score is computed
    assert (sampled["low"] <= sampled["right"] / sampled["questions"]).all() and comparison.baselines(records[1:]).empty
    assert ways.loc["random guess", ["low", "high"]].isna().all()


def test_a_difference_of_methods_is_taken_item_by_item(runs):
    """Items that vary much, and methods that differ little but always alike: the interval of the difference is narrow."""

    def lossy(record, extra, seed=0):
        items = [[loss, 1] for loss in range(1, 41)]
        return replace(record, seed=seed, evaluation=record.evaluation | {
            "general": {"loss": 0, "losses": [[loss + extra, n] for loss, n in items]}})  # fmt: skip

    lora, full = runs.lora.record, runs.full.record
    found = comparison.differences([lossy(lora, 0.1), lossy(full, 0)]).set_index("part").loc["general"]
    assert found[["difference", "low", "high"]].to_list() == pytest.approx([0.1, 0.1, 0.1])
    assert found["says"] == "full fine-tuning is better in this run" and found["seeds"] == 1
    turned = [lossy(lora, 0.1), lossy(full, 0), lossy(lora, 0, 1), lossy(full, 0.1, 1)]
    found = comparison.differences(turned).set_index("part").loc["general"]
    assert found["low"] < 0 < found["high"] and found["says"] == "cannot be decided" and found["seeds"] == 2
    assert comparison.differences([lora]).empty
    right = comparison.differences(_seeds(runs, [[1] * 20], [[0] * 10 + [1] * 10])).set_index("part").loc["exact_match"]
    assert right["difference"] == 50 and right["says"] == "LoRA is better in this run"


@pytest.mark.parametrize(("only_first", "says"), [(5, "cannot be decided"), (6, "LoRA is better in this run")])
def test_one_run_needs_the_exact_test_too_where_few_answers_differ(runs, only_first, says):
    """A bootstrap of answers that all differ to one side never reaches zero, however few they are."""
    records = _seeds(runs, [[1] * 20], [[0] * only_first + [1] * (20 - only_first)])
    found = comparison.differences(records).set_index("part").loc["exact_match"]
    assert found["low"] > 0 and found["says"] == says


def test_table_has_a_column_for_each_method_and_survives_unscored_data(runs):
    records = [runs.base.record, runs.lora.record, runs.full.record]
    assert list(comparison.table(records)) == ["base", "lora", "full"]
    shipped = load_reference("small-cpu")
    assert "reference record, not your run" in comparison.table(shipped).to_html()
    assert "reference record" not in comparison.table(records).to_html()
    assert all(record.note.startswith("reference record, not your run") for record in shipped)
    assert {"prose loss", "general loss", "unrelated loss"} <= set(comparison.table(records).index)
    unscored = [replace(r, evaluation=r.evaluation | {"exact_match": None, "harder": None}) for r in records]
    assert "exact match" not in comparison.table(unscored).index


def test_comparing_needs_no_torch():
    code = "import sys, helpers.comparison, helpers.plotting, helpers.records, helpers.settings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("other", "name"), [("dora", "DoRA"), ("grpo", "GRPO"), ("another", "another")])
def test_sentences_can_compare_any_two_methods(other, name):
    records = [replace(r, method=other) if r.method == "full" else r for r in load_reference("small-h200")]
    assert len([s for s in conclusions(records, "lora", other) if f"LoRA minus {name}" in s]) == 2


@pytest.mark.parametrize("kept", [8, 1, 0])
def test_replies_stand_side_by_side_as_far_as_all_records_keep_them(kept):
    base, *others = [r for r in load_reference("small-h200") if r.seed == 0]
    prose = base.evaluation["prose"]
    short = replace(base, evaluation=base.evaluation | {"prose": prose | {"replies": prose["replies"][:kept]}})
    table = comparison.side_by_side([*others, short])
    assert len(table) == kept and list(table["base"]) == [each["reply"] for each in prose["replies"][:kept]]
    assert list(table["question"]) == [each["question"] for each in prose["replies"][:kept]]


def test_what_one_seed_says_is_told_with_its_interval_and_as_a_hint():
    records = load_reference("small-h200")
    for r in records:
        if r.method == "lora":  # so much worse that question by question there is no doubt
            r.evaluation["unrelated"]["losses"] = [[x + 1 for x in row] for row in r.evaluation["unrelated"]["losses"]]
    one = [r for r in records if r.seed == 0]
    few, all_seeds = conclusions(one), conclusions(records)
    right = comparison.differences(one).set_index("part").loc["exact_match", "interval"]
    assert sum(right in sentence and "another seed can reverse" in sentence for sentence in few) == 1
    assert sum("This is a hint" in sentence for sentence in few) == 1 and not any("hint" in s for s in all_seeds)
    assert few[-1] == "The best way to ask it (base, three of the family) gets 3 of 25 right."
