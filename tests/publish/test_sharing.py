"""Publishing to a stand-in for the hub: what arrives, that it is private, and what a missing or weak token gives."""

import json

from helpers.models import merge
from helpers.publish import SharingError, model_card, publish
from helpers.settings import settings_for
from tests.hub import READ_TOKEN, TOKEN, Hub

import pytest
from huggingface_hub import ModelCard


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub(tmp_path / "hub") as server:
        server.patch(monkeypatch, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_the_adapter_arrives_private_with_tokenizer_and_card(hub, runs):
    address = publish(runs.settings("lora"), "tester/answers", runs.lora.folder / "adapter")
    assert address == f"{hub.url}/tester/answers" and hub.private["tester/answers"]
    files = hub.files("models", "tester/answers")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= files.keys()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "tiny"
    sent = runs.lora.folder / "adapter/adapter_model.safetensors"
    assert files["adapter_model.safetensors"] == sent.read_bytes()
    assert not any(TOKEN.encode() in raw or b"/tmp" in raw or b"/work" in raw for raw in files.values())


def test_the_merged_model_arrives_and_loads_from_there(hub, runs, tmp_path):
    from transformers import AutoModelForCausalLM

    merge(runs.settings("lora"), tmp_path / "merged")
    publish(runs.settings("lora"), "tester/merged", tmp_path / "merged")
    assert "config.json" in hub.files("models", "tester/merged")
    assert AutoModelForCausalLM.from_pretrained("tester/merged").num_parameters() == runs.base.model.num_parameters()


def test_the_card_says_what_the_record_holds(runs):
    card = model_card(runs.lora.record, "tester/answers", merged=False, base=runs.base.record)
    assert card.data.library_name == "peft" and "lora" in card.data.tags
    loss = f"{runs.lora.record.evaluation['loss']:.4f}"
    for words in (loss, "95 %", runs.lora.record.device["name"], "bundled", "rank 8, alpha 16", "look it up"):
        assert words in card.text, words
    record = runs.lora.record
    record = type(record)(**vars(record) | {"model": record.model | {"source": "smollm2-135m"}})
    assert ModelCard(str(model_card(record, "a/b", merged=True))).data.license == "apache-2.0"


def test_a_missing_or_weak_token_gives_the_next_step(hub, runs, monkeypatch):
    folder = runs.lora.folder / "adapter"
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with pytest.raises(SharingError, match=r"may not write to tester/x: .*role \*write\*.*hf auth login"):
        publish(runs.settings("lora"), "tester/x", folder)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SharingError, match="hf auth login"):
        publish(runs.settings("lora"), "tester/x", folder)
    assert hub.files("models", "tester/x") == {}


def test_a_public_repository_is_not_filled_unless_told(hub, runs):
    folder = runs.lora.folder / "adapter"
    publish(runs.settings("lora"), "tester/open", folder, private=False)
    with pytest.raises(SharingError, match="exists and is public"):
        publish(runs.settings("lora"), "tester/open", folder)


def test_a_hub_that_is_away_is_one_sentence(runs):
    with pytest.raises(SharingError, match="HF_HUB_OFFLINE.*nothing was published"):
        publish(runs.settings("lora"), "tester/x", runs.lora.folder / "adapter")


def test_nothing_is_published_without_a_finished_run(hub, tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        publish(settings_for("tiny", runs_dir=str(tmp_path)), "tester/x", tmp_path)
    assert not hub.requests


@pytest.mark.parametrize("source", ["/data/alice/base", "models/tiny", "~/base", "./base", "base"])
def test_a_local_model_and_local_data_are_no_names_on_the_hub(runs, source):
    record = runs.lora.record
    data = {"source": f"{source}/rows.jsonl"}
    changed = {"model": record.model | {"source": source}, "data": record.data | data}
    card = model_card(type(record)(**vars(record) | changed), "a/b", merged=False)
    assert card.data.base_model is None and card.data.datasets is None and "A local model" in card.text
    assert "alice" not in str(card) and "| rows.jsonl" in card.text and "fetches the base" not in card.text


@pytest.mark.parametrize(("source", "license"), [
    ("meta-llama/Llama-2-7b-chat-hf", "llama2"), ("meta-llama/Meta-Llama-3-8B", "llama3"),
    ("meta-llama/Llama-3.1-8B-Instruct", "llama3.1"), ("meta-llama/Llama-3.3-70B-Instruct", "llama3.3"),
])  # fmt: skip
def test_the_license_is_that_of_the_version(runs, source, license):
    record = runs.lora.record
    card = model_card(type(record)(**vars(record) | {"model": record.model | {"source": source}}), "a/b", merged=False)
    assert card.data.license == license and card.data.base_model == source
