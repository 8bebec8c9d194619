"""The published profiles, through the real loading code, from a hub that serves their files under their names."""

import json
import shutil

from helpers.data import prepare
from helpers.models import load_adapter, load_base, load_tokenizer
from helpers.settings import PINS, settings_for
from helpers.sources import ModelError, resolve
from helpers.sources.rows import parse_llama2
from helpers.training import train
from tests.hub import Hub

import pandas
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

LLAMA2, GUANACO = "NousResearch/Llama-2-7b-chat-hf", "mlabonne/guanaco-llama2-1k"
LLAMA3, METAMATH = "NousResearch/Meta-Llama-3-8B-Instruct", "meta-math/MetaMathQA"
TURNS = (
    "<s>[INST] How many GB are {n} x 2? [/INST] That is {n} x 2 GB. </s>",
    "<s>[INST] How many GB are {n} x 3? [/INST] Three times. </s><s>[INST] And {n} x 4? [/INST] Four times. </s>",
)


def metamath_row(n: int, words: int) -> dict:
    """One of three rewordings of question n, as MetaMathQA holds them."""
    response = f"{n} times {words}.\nThe answer is: $\\frac{{{n}}}{{7}}$"
    query, original = f"What is {n} x {words}?", f"question {n}"
    return {"query": query, "original_question": original, "type": "GSM_Rephrased", "response": response}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Tiny models in two shards with the file names of the real ones, and small Parquet files in place of the data."""
    folder = tmp_path_factory.mktemp("hub")
    tiny = resolve(settings_for("tiny")).folder
    for name in (LLAMA2, LLAMA3):
        target = folder / "models" / name
        AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(target, max_shard_size="100KB")
        tokenizer = AutoTokenizer.from_pretrained(tiny)
        if name == LLAMA2:
            tokenizer.chat_template = tokenizer.pad_token = None  # as published: neither
        tokenizer.save_pretrained(target)
    assert (folder / "models" / LLAMA2 / "model.safetensors.index.json").is_file()
    guanaco = pandas.DataFrame({"text": [TURNS[n % 2].format(n=n) for n in range(60)]})
    rewordings = [metamath_row(n, words) for n in range(40) for words in range(3)]
    files = {
        GUANACO: ("data/train-00000-of-00001-9ad84bb9cf65a42f.parquet", guanaco),
        METAMATH: ("MetaMathQA-395K.json", pandas.DataFrame(rewordings)),
    }
    for name, (file, frame) in files.items():
        path = folder / "datasets" / name / file
        path.parent.mkdir(parents=True)
        frame.to_parquet(path) if path.suffix == ".parquet" else path.write_text(frame.to_json(orient="records"))
    return folder


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    with Hub(repositories) as server:
        server.commits = dict(PINS)
        server.patch(monkeypatch, tmp_path / "cache")
        yield server


@pytest.mark.parametrize("profile", ["llama2-7b", "llama2-7b-r8", "llama2-7b-r64"])
def test_the_walkthroughs_train_from_the_hub_at_pinned_revisions(hub, tmp_path, profile):
    settings = settings_for(profile, runs_dir=str(tmp_path), max_steps=4)
    record = train(settings, prepare(settings, load_tokenizer(resolve(settings)))).record
    assert record.model["revision"] == PINS[LLAMA2] and record.data["revision"] == PINS[GUANACO]
    fetched = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert fetched and all(f"/resolve/{PINS[LLAMA2]}/" in p or f"/resolve/{PINS[GUANACO]}/" in p for p in fetched)
    assert record.training["trainable"] == 2 * (settings.rank * (64 + 64) + settings.rank * (64 + 32))  # q and v
    rates = [step["learning_rate"] for step in record.steps]
    assert profile == "llama2-7b" or rates == [4e-5] * 4


def test_guanaco_rows_become_messages_and_render_back_without_a_doubled_token(hub):
    settings = settings_for("llama2-7b")
    tokenizer = load_tokenizer(resolve(settings))
    data = prepare(settings, tokenizer)
    texts = {TURNS[n % 2].format(n=n) for n in range(60)}
    for row in data.train + data.test + data.validation:
        text = tokenizer.apply_chat_template(row.messages, tokenize=False)
        assert text in texts and row.messages == parse_llama2(text)
        assert row.input_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        for token in ("<s>", "</s>"):
            assert row.input_ids.count(tokenizer.convert_tokens_to_ids(token)) == text.count(token)
    assert len(data.train + data.test + data.validation) == 60


def test_metamath_is_scored_and_rewordings_of_one_question_stay_together(hub):
    settings = settings_for("llama3-8b")
    data = prepare(settings, load_tokenizer(resolve(settings)))
    assert data.scored and data.revision == PINS[METAMATH]
    assert sum(len(rows) for rows in (data.train, data.validation, data.test)) == 40  # one of each three


def serve_as(hub, name: str) -> str:
    shutil.copytree(hub.folder / "models" / LLAMA2, hub.folder / "models" / name)
    return name


def test_a_model_without_a_known_revision_is_resolved_once_and_reported(hub, capsys):
    settings = settings_for("llama2-7b", model=serve_as(hub, "someone/Llama-2-7b-chat-copy"))
    assert settings.revision is None
    revision = resolve(settings).revision
    assert revision == hub.commit("models", settings.model) and revision in capsys.readouterr().out
    requests = len(hub.requests)
    assert resolve(settings).revision == revision and len(hub.requests) == requests


def test_a_gated_original_is_refused_with_what_to_do(hub):
    settings = settings_for("llama2-7b", model=serve_as(hub, "meta-llama/Llama-2-7b-chat-hf"))
    assert settings.revision == PINS[settings.model]
    hub.faults[settings.model] = "gated"
    with pytest.raises(ModelError, match="is gated: accept its terms on .*, then log in with `hf auth login`"):
        resolve(settings)


def test_an_adapter_of_the_other_profile_is_refused(hub, tmp_path):
    first, other = settings_for("llama2-7b", runs_dir=str(tmp_path), max_steps=4), settings_for("tiny")
    trained = train(first, prepare(first, load_tokenizer(resolve(first))))
    base = json.loads((trained.folder / "adapter/base.json").read_text())
    assert base["revision"] == PINS[LLAMA2]
    with pytest.raises(ModelError, match=f"was trained on {LLAMA2}"):
        load_adapter(load_base(resolve(other)), resolve(other), trained.folder / "adapter")
