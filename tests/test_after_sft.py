"""11_after_sft: what its trainings did on the tiny model, the records they left, and how its exercises judge answers."""

import math

from helpers.comparison import NotComparable, comparability, table
from helpers.engine.preflight import TrainingError
from helpers.exercises import after_sft as exercises
from helpers.models import load_adapter, load_base
from helpers.records import load_series
from helpers.settings import AFTER_SFT, settings_for
from helpers.sources import resolve
from helpers.training import train

import pytest
import torch


@pytest.fixture(scope="module")
def made(series):
    """The records of the series by method, with those of 11."""
    return {record.method: record for record in load_series(series.folder, after_sft=True)}


def test_the_reward_and_the_margin_rise(made):
    for method, key in (("grpo", "reward"), ("dpo", "margin")):
        values = [step[key] for step in made[method].steps]
        quarter = len(values) // 4
        assert len(values) >= 12 and sum(values[-quarter:]) > sum(values[:quarter]), (method, values)
    assert math.isclose(made["dpo"].steps[0]["loss"], math.log(2), rel_tol=0.01)


def test_only_the_adapter_changed_and_it_stands_on_the_same_base(made, series, tiny):
    for method in AFTER_SFT:
        held = {guard["name"]: guard["detail"] for guard in made[method].guards}
        assert "before and after" in held["frozen weights did not change"] and "only the adapter is trained" in held
        base, folder = resolve(tiny), series.folder / f"{method}-s0" / "adapter"
        model = load_adapter(load_base(base, "fp32"), base, folder)
        ids = torch.tensor([[5, 6, 7]])
        with torch.inference_mode(), model.disable_adapter():
            assert torch.equal(model(ids).logits, load_base(base, "fp32")(ids).logits)


def test_the_records_stand_beside_those_of_sft_but_not_among_them(made, series):
    assert not {record.method for record in load_series(series.folder)} & {*AFTER_SFT}
    four = [made[method] for method in ("base", "lora", *AFTER_SFT)]
    assert comparability(four)["evaluation rows"]
    assert list(table(four).columns) == ["base", "lora", *AFTER_SFT]
    made["grpo"].evaluation["fingerprint"], kept = "other", made["grpo"].evaluation["fingerprint"]
    with pytest.raises(NotComparable, match="evaluation rows differ"):
        comparability(four)
    made["grpo"].evaluation["fingerprint"] = kept


@pytest.mark.parametrize("method", AFTER_SFT)
def test_train_refuses_a_method_that_it_does_not_do(data, method, tmp_path):
    with pytest.raises(TrainingError, match=f"supervised fine-tuning only; 11_after_sft shows {method}"):
        train(settings_for("tiny", method, runs_dir=str(tmp_path)), data)


def test_a_loaded_adapter_is_frozen_unless_it_is_to_be_trained_further(runs, tiny):
    base = resolve(tiny)
    for trainable, dtype in ((False, torch.bfloat16), (True, torch.float32)):
        model = load_adapter(load_base(base, "bf16"), base, runs.lora.folder / "adapter", trainable=trainable)
        for name, weight in model.named_parameters():
            assert weight.requires_grad == (trainable and "lora_" in name), name
            assert weight.dtype == (dtype if "lora_" in name else torch.bfloat16), name


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda rewards: rewards, "eight equal rewards teach nothing"),
        (lambda rewards: [r - sum(rewards) / len(rewards) for r in rewards], "divide the differences"),
        (lambda rewards: [0.0] * 8, "4 rewards give 8 advantages"),
    ],
)
def test_wrong_advantages_are_told_why(wrong, why):
    assert why in exercises.group_advantages(wrong).message


def test_rewards_that_can_be_cheated_are_told_why():
    given = {"references": ["8 / 4 = 2. The answer is: 2"]}
    for wrong, why in (
        (lambda reply, truth: float("2" in reply), "only repeats numbers"),
        (lambda reply, truth: float("The answer is:" in reply), "ends in a wrong number"),
        (
            lambda reply, truth: float(reply.rstrip(".").endswith("The answer is: 2")),
            "tries one number after the other",
        ),
        (lambda reply, truth: 0.5, "earns 0.5, not 1"),
    ):
        assert why in exercises.honest_reward(wrong, **given).message
    for wrong, why in ((0.0, "no loss of 0"), (0.5, "probability"), (3.0, "formula of section 7")):
        assert why in exercises.dpo_start(wrong, margin=0.0).message
