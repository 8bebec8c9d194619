"""Tiny random models of many families: trained as a plain transformers loop trains them, counted, saved and read again.

Each head is enlarged, so that a scale, a cap or a bias that the loss leaves out would show.
"""

import shutil
from dataclasses import replace

from helpers import inference
from helpers.evaluation import evaluate, held_out_loss
from helpers.inference import generate, logits
from helpers.models import load_base, load_saved, load_tokenizer, load_trained
from helpers.settings import IGNORED, SettingsError, settings_for
from helpers.sources import ModelError, resolve
from helpers.training import TrainingError, train
from tests.families import FAMILIES, build, plain_losses
from tests.shared import losses

import pytest
import torch
from transformers import AutoConfig

NOT_CAPTURED = {"mistral-window", "gemma2", "gemma3", "gpt-oss-sinks", "qwen3-experts"}  # answered by generate
OWN_LOSS = {  # families whose loss is not that of hidden states times a matrix, and what the record says of it
    "gemma2": "does more than multiply",
    "granite": "does more than multiply",
    "phi-bias": "does more than multiply",
    "cohere": "does more than multiply",
    "qwen3-experts": "not cross-entropy alone",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny):
    """The settings of short runs on the model of a family, which is built the first time."""
    folder, there = tmp_path_factory.mktemp("families"), {}

    def settings(family: str, method: str = "lora", **changes):
        if family not in there:
            there[family] = build(resolve(tiny).folder, folder / family, *FAMILIES[family])
        given = {
            "max_steps": 3,
            "precision": "fp32",
            "model": str(there[family]),
            "runs_dir": str(folder / "runs" / family),
        }
        return settings_for("tiny", method, **given | changes)

    return settings


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_equal_a_plain_loop_and_the_result_loads_as_it_was(family, method, made, data, capsys):
    settings = made(family, method)
    trained = train(settings, data)
    record, lines = trained.record, capsys.readouterr().out.splitlines()
    assert losses(trained) == pytest.approx(plain_losses(settings, data), rel=2e-4)
    why = record.decisions["loss"]["why"]
    assert record.decisions["loss"]["value"] == ("stock" if family in OWN_LOSS else "fast")
    assert OWN_LOSS.get(family, "of the model's own on real rows") in why
    assert sum("is trained with its own loss" in line for line in lines) == (family in OWN_LOSS)
    total = sum(p.numel() for p in load_base(resolve(settings)).parameters())
    adapter = record.training["trainable"] if method == "lora" else 0
    assert record.model["parameters"] == total == record.training["total"] - adapter
    record.save(trained.folder)
    ids = torch.tensor([data.test[0].input_ids])
    again = load_trained(settings, "fp32")
    assert (logits(again, ids) - logits(trained.model, ids)).abs().max() == 0
    if method == "full":  # TRL and transformers change the configuration of a model that they train
        saved, base = load_saved(trained.folder / "model")[0], load_base(resolve(settings), "fp32")
        assert saved.config.to_diff_dict() == base.config.to_diff_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_loss_and_answers_come_from_the_models_own_forward_pass(family, made, data):
    settings = made(family, max_new_tokens=3)
    few, total, tokens = data.test[:4], 0.0, 0
    model = load_base(resolve(settings), "fp32").eval()
    for row in few:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(scores, labels[0, 1:], reduction="sum").item()
        tokens += int((labels[:, 1:] != IGNORED).sum())
    held_out = held_out_loss(model, few)
    assert (held_out["loss"], held_out["tokens"]) == (pytest.approx(total / tokens, rel=5e-5), tokens)
    result = evaluate(model, load_tokenizer(resolve(settings)), replace(data, test=few, harder=[]), settings)
    assert len(result["replies"]) == 4 and model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("family", "changes", "error", "reason"),
    [
        ("gemma2", {"attention": "sdpa"}, SettingsError, "attention='sdpa' cannot be used: this model's layers ask"),
        ("gpt-oss-sinks", {"attention": "varlen"}, SettingsError, "attention='varlen' cannot be used"),
        ("phi3-fused", {"targets": "q_proj"}, ValueError, "is called q_proj; there are o_proj, qkv_proj, gate_up_proj"),
        ("gpt2", {"targets": "c_proj,q_proj"}, ValueError, "is called q_proj; there are c_attn, attn.c_proj"),
        (
            "falcon-alibi",
            {"batch_tokens": 1024, "attention": "sdpa"},
            TrainingError,
            "trained with batch_tokens: .*batch_size",
        ),
    ],
)
def test_what_a_family_cannot_do_is_refused_with_its_true_reason(family, changes, error, reason, made, data):
    with pytest.raises(error, match=reason):
        train(made(family, **changes), data)


@pytest.mark.parametrize(
    ("kind", "error", "reason"),
    [
        ("bert", TrainingError, "with the tokens that come after it, so it is no causal language model"),
        ("mamba", ModelError, "PEFT cannot adapt this model: .*'out_proj' is incompatible with Mamba-based models"),
        ("t5", ModelError, "is a t5 model, and transformers has no causal language model of that kind"),
    ],
)
def test_a_type_that_is_not_supported_is_refused_in_one_sentence(kind, error, reason, tmp_path, tiny, data):
    if kind == "t5":
        folder = tmp_path / kind
        shutil.copytree(resolve(tiny).folder, folder)
        AutoConfig.for_model("t5").save_pretrained(folder)
    else:
        folder = build(resolve(tiny).folder, tmp_path / kind, kind, {})
    with pytest.raises(error, match=reason):
        train(tiny.change(model=str(folder), runs_dir=str(tmp_path), precision="fp32", max_steps=1), data)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_captured_step_gives_the_tokens_of_generate_or_is_left_to_it(family, made, data, monkeypatch):
    base = resolve(made(family))
    model, tokenizer = load_base(base, "fp32", "sdpa" if base.shape.sdpa else "eager"), load_tokenizer(base)
    replayed = []

    def on_a_gpu(**inputs):
        monkeypatch.setattr(model, "generate", plain)
        replayed.append(inference._replay(model, **inputs))
        return plain(**inputs) if replayed[0] is None else replayed[0]

    plain, prompts = model.generate, [example.prompt for example in data.test[:4]]
    monkeypatch.setattr(
        inference, "_captured", lambda step: step
    )  # a CPU has no graphs: the step itself runs each time
    expected = generate(model, tokenizer, prompts, 20)
    monkeypatch.setattr(model, "generate", on_a_gpu)
    assert generate(model, tokenizer, prompts, 20) == expected and len(replayed) == 1
    assert (replayed[0] is None) == (family in NOT_CAPTURED)
