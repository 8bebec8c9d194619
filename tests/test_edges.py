"""Settings at 0, 1, a huge value or more than a dimension: they work, or are refused before anything runs."""

from helpers import records
from helpers.batches import training_order
from helpers.device import plan
from helpers.evaluation import evaluate
from helpers.settings import SettingsError, settings_for
from helpers.sources import ModelError, resolve
from helpers.training import TrainingError, train

import pytest

HUGE = 10_000_000
REFUSED = [
    *[(name, 0) for name in ("train_rows", "test_rows", "max_length", "rank", "alpha", "max_steps", "batch_size")],
    *[(name, 0) for name in ("batch_tokens", "accumulation", "max_new_tokens", "eval_batch_size", "devices")],
    *[(name, -1) for name in ("harder_rows", "validation_rows", "warmup_steps", "save_steps", "seed")],
    *[(name, HUGE) for name in ("alpha", "max_steps", "max_new_tokens", "weight_decay")],
    *[(name, HUGE + 1) for name in ("train_rows", "max_length", "rank", "batch_size", "save_steps", "warmup_steps")],
    *[("learning_rate", rate) for rate in (0.0, 1e-12, 1.0, float("inf"), float("nan"))],
    *[("dropout", share) for share in (-0.1, 1.0, float("nan"))],
    *[("max_grad_norm", norm) for norm in (-1.0, 1e-30, float("inf"))],
    ("seed", 2**32),
]
LEAST = {"rank": 1, "alpha": 1, "batch_size": 1, "accumulation": 1, "max_new_tokens": 1, "eval_batch_size": 1}
LEAST |= {"warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 0.0, "dropout": 0.0, "save_steps": 0, "seed": 0}
MOST = {"rank": 160, "batch_size": HUGE, "warmup_steps": HUGE, "save_steps": HUGE, "eval_batch_size": HUGE}
MOST |= {"max_grad_norm": float(HUGE), "dropout": 0.999, "weight_decay": 1.0, "seed": 2**32 - 1, "max_length": HUGE}


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_value_beyond_the_edge_is_refused_by_name_when_it_is_set(name, value):
    with pytest.raises(SettingsError, match=f"^{name} (must|is)"):
        settings_for("tiny", **{name: value})


@pytest.mark.parametrize("edge", [LEAST, MOST], ids=["least", "most"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_smallest_and_the_largest_values_train_and_are_recorded(edge, method, tmp_path, data):
    settings = settings_for("tiny", method, runs_dir=str(tmp_path), max_steps=2, **edge)
    few = type(data)(**vars(data) | {"train": data.train[:30]})
    trained = train(settings, few)
    trained.record.evaluation = evaluate(trained.model, trained.tokenizer, few, settings.change(max_new_tokens=1))
    trained.record.save(trained.folder)
    kept = records.load(trained.folder / records.FILE_NAME)
    assert len(kept.steps) == 2 and kept.settings["rank"] == edge["rank"] and len(kept.evaluation["replies"]) > 0


@pytest.mark.parametrize(
    ("method", "schedule", "steps"),
    [
        ("lora", "constant", 1),
        ("lora", "linear", 1),
        ("lora", "cosine", 2),
        ("full", "linear", 1),
        ("full", "cosine", 2),
    ],
)
def test_a_run_of_very_few_steps_trains_and_proves_it(method, schedule, steps, tmp_path, data):
    settings = settings_for("tiny", method, runs_dir=str(tmp_path), max_steps=steps, schedule=schedule, warmup_steps=5)
    record = train(settings, data).record
    assert len(record.steps) == steps and record.steps[0]["learning_rate"] > 0
    assert "trained weights changed" in {guard["name"] for guard in record.guards}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rank": 161}, "rank=161 is more than the adapted layers have features \\(160\\)"),
        ({"rank": HUGE}, f"rank={HUGE} is more than"),
        ({"rank": 65, "targets": "q_proj,v_proj"}, "rank=65 is more than the adapted layers have features \\(64\\)"),
        ({"targets": ","}, "no layer that LoRA adapts here is called ,; there are q_proj"),
        ({"targets": "lm_head"}, "no layer that LoRA adapts here is called lm_head; there are q_proj"),
        ({"targets": "proj"}, "no layer that LoRA adapts here is called proj"),
        ({"accumulation": HUGE}, f"accumulation={HUGE} is more than the 320 rows"),
        ({"batch_tokens": 1}, "more than batch_tokens = 1: rows are never cut"),
    ],
)
def test_a_value_larger_than_model_or_data_is_refused_before_anything_is_loaded(changes, reason, data, monkeypatch):
    monkeypatch.setattr("helpers.engine.run.load_base", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises((SettingsError, ValueError, TrainingError), match=reason):
        train(settings_for("tiny", **changes), data)


def test_a_row_longer_than_the_model_has_positions_is_refused(data):
    longest = max(data.train, key=lambda row: len(row.input_ids))
    long = type(longest)(longest.messages, input_ids=longest.input_ids * 20, labels=longest.labels * 20)
    with pytest.raises(ModelError, match=r"the longest row has \d+ tokens, and tiny was made for 1024: set max_length"):
        train(settings_for("tiny"), type(data)(**vars(data) | {"test": [long]}))


def test_names_of_layers_may_be_written_loosely(tiny):
    plans = [plan(tiny.change(targets=names), resolve(tiny).shape) for names in ("q_proj,v_proj", " v_proj , q_proj,")]
    assert plans[0].predicted == plans[1].predicted


def test_a_million_steps_are_ordered_one_epoch_after_another(data, tiny):
    order = training_order(data, tiny.change(max_steps=100_000))
    assert len(order) == 100_000 and all(order)
