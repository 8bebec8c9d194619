"""Settings and profiles: what is refused, in which words, and what a change keeps."""

import re
from dataclasses import FrozenInstanceError

from helpers.settings import METHODS, PROFILES, ROOT, SettingsError, settings_for

import pytest


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("method", METHODS)
def test_every_profile_and_method_gives_valid_settings(profile, method):
    settings = settings_for(profile, method)
    assert settings.change(**settings.table()) == settings  # each value passes its own check


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rte": 0.1}, "did you mean 'learning_rate'"),
        ({"learning_rate": "1e-4"}, "learning_rate must be of type float, not str"),
        ({"learning_rate": 3.0}, "learning_rate must be between 1e-07 and 0.999"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"max_steps": 0}, "max_steps must be between 1 and 1,000,000, not 0"),
        ({"max_steps": True}, "must be of type int, not bool"),
        ({"batch_size": -4}, "between 1 and 10,000,000"),
        ({"rank": 2.5}, "must be of type int"),
        ({"dropout": 1.0}, "between 0 and 0.999"),
        ({"precision": "fp16"}, "one of bf16, fp32"),
        ({"model": " "}, "must not be empty"),
    ],
)
def test_a_bad_change_is_refused_with_a_sentence(change, words):
    with pytest.raises(SettingsError, match=re.escape(words)):
        settings_for("tiny", **change)


def test_an_unknown_profile_names_the_nearest_and_an_unknown_method_all():
    with pytest.raises(SettingsError, match="did you mean 'small'"):
        settings_for("smal")
    with pytest.raises(SettingsError, match="method must be one of full, lora, qlora"):
        settings_for("tiny", "qlor")


def test_none_keeps_the_value_of_the_profile():
    assert settings_for("small", max_steps=None, data=None) == settings_for("small")


def test_methods_have_their_own_learning_rates():
    assert settings_for("small", "full").learning_rate < settings_for("small", "lora").learning_rate
    assert settings_for("small", "dora").learning_rate == settings_for("small", "lora").learning_rate


def test_a_pinned_revision_goes_with_its_model():
    assert re.fullmatch("[0-9a-f]{40}", settings_for("llama2-7b").revision)
    assert settings_for("llama2-7b", model="someone/else").revision is None
    assert settings_for("llama3-8b", data="someone/else").data_revision is None


def test_own_data_gets_room_for_longer_rows():
    assert settings_for("small", data="mine.jsonl").max_length == 1024
    assert settings_for("small", data="mine.jsonl", max_length=99).max_length == 99


def test_settings_are_frozen():
    settings = settings_for("tiny")
    with pytest.raises(FrozenInstanceError):
        settings.seed = 3


def test_results_lie_in_the_repository_unless_told_otherwise(tmp_path):
    assert settings_for("tiny", "full", seed=2).folder == ROOT / "runs/tiny/full-s2"
    assert settings_for("tiny", runs_dir=str(tmp_path)).folder == tmp_path / "tiny/lora-s0"
