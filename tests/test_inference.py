"""Evaluation and use of the trained models: scores, batches, merging, streaming, loading."""

from helpers.data import Example
from helpers.evaluation import answers, held_out_loss, score
from helpers.inference import generate, stream
from helpers.models import load_adapter, load_base, load_saved, load_trained, save_model
from helpers.plotting import token_strip
from helpers.sources import ModelError, resolve

import pytest
import torch


def test_score_reads_the_last_number():
    rows = [Example([{"role": "user", "content": "?"}, {"role": "assistant", "content": "The answer is: 1024"}])] * 4
    assert score(rows, ["The answer is: 1,024", "The answer is: 1024.0", "1024", "The answer is: 102"]) == [
        True,
        True,
        False,
        False,
    ]


def test_held_out_loss_does_not_depend_on_the_batch(runs, monkeypatch):
    model = load_base(resolve(runs.settings("full")), "fp32")
    together = held_out_loss(model, runs.data.test)
    monkeypatch.setattr("helpers.evaluation.TOKENS_AT_A_TIME", 1)  # one row at a time
    assert held_out_loss(model, runs.data.test)["loss"] == pytest.approx(together["loss"], rel=1e-5)


def test_a_batch_answers_as_single_questions_do(runs):
    model = load_base(resolve(runs.settings("full")), "fp32")
    together = answers(model, runs.full.tokenizer, runs.data.test[:6], 12, 6)
    alone = [generate(model, runs.full.tokenizer, [e.prompt], 12)[0] for e in runs.data.test[:6]]
    assert together == alone


def test_streamed_pieces_make_the_same_answer(runs):
    prompt = runs.data.test[0].prompt
    pieces = list(stream(runs.full.model, runs.full.tokenizer, prompt, 12))
    assert "".join(pieces).strip() == generate(runs.full.model, runs.full.tokenizer, [prompt], 12)[0]


def test_merged_and_saved_equals_adapter_on_base(runs, tmp_path):
    settings = runs.settings("lora")
    ids = torch.tensor([runs.data.test[0].input_ids])
    apart = load_adapter(load_base(resolve(settings), "fp32"), resolve(settings), runs.lora.folder / "adapter").eval()
    expected = apart(ids).logits
    merged = (
        load_adapter(load_base(resolve(settings), "fp32"), resolve(settings), runs.lora.folder / "adapter")
        .merge_and_unload()
        .eval()
    )
    assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
    save_model(merged, runs.lora.tokenizer, tmp_path / "merged")
    loaded, tokenizer = load_saved(tmp_path / "merged")
    assert torch.equal(loaded.eval()(ids).logits, merged(ids).logits)
    assert tokenizer.chat_template == runs.lora.tokenizer.chat_template
    with apart.disable_adapter():
        assert torch.equal(apart(ids).logits, load_base(resolve(settings), "fp32").eval()(ids).logits)


def test_a_reloaded_adapter_gives_the_logits_it_was_saved_with(runs):
    settings = runs.settings("lora")
    ids = torch.tensor([runs.data.test[0].input_ids])
    again = load_trained(settings, runs.lora.record.decisions["precision"]["value"]).eval()
    assert torch.equal(again(ids).logits, runs.lora.model.eval()(ids).logits)


def test_what_was_not_trained_names_its_notebook(tmp_path, runs):
    for method, notebook in (("full", "03_full_train"), ("lora", "02_lora_train")):
        with pytest.raises(ModelError, match=f"run {notebook}"):
            load_trained(runs.settings(method).change(runs_dir=str(tmp_path)))
    with pytest.raises(ModelError, match="no saved model"):
        load_saved(tmp_path)


def test_tokens_shown_in_a_notebook_are_escaped():
    assert "<b>" not in token_strip(["<b>", "\n"], [True, False])
