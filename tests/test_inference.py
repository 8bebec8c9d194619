"""Answers of a model, at once and piece by piece."""

from helpers import inference
from helpers.inference import generate, stream

import pytest
import torch


@pytest.fixture
def prompts(runs):
    return [example.prompt for example in runs.data.test[:6]]


def test_streamed_pieces_make_the_same_answer(runs):
    prompt = runs.data.test[0].prompt
    pieces = list(stream(runs.full.model, runs.full.tokenizer, prompt, 12))
    assert "".join(pieces).strip() == generate(runs.full.model, runs.full.tokenizer, [prompt], 12)[0]


def replayed(monkeypatch, run, prompts, limit, captured=lambda step: step) -> list[str]:
    """Answers by the path for GPUs; a CPU has no graphs, so the step that would be captured runs each time."""
    monkeypatch.setattr(inference, "_captured", captured)
    inputs = {}

    def generate_on_gpu(**given):
        inputs.update(given)
        return inference._replay(run.model, **given)

    monkeypatch.setattr(run.model, "generate", generate_on_gpu)
    return generate(run.model, run.tokenizer, prompts, limit)


@pytest.fixture
def sdpa(runs):
    """The attention that evaluation answers with, for both models."""
    before = [(run.model, run.model.config._attn_implementation) for run in (runs.full, runs.lora)]
    for model, _ in before:
        model.set_attn_implementation("sdpa")
    yield
    for model, attention in before:
        model.set_attn_implementation(attention)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("limit", [1, 2, 3, 40])
def test_a_captured_step_gives_every_token_of_generate(runs, prompts, method, limit, sdpa, monkeypatch):
    run = getattr(runs, method)
    expected = generate(run.model, run.tokenizer, prompts, limit)
    assert replayed(monkeypatch, run, prompts, limit) == expected


def test_it_stops_when_all_answers_have_ended(runs, prompts, sdpa, monkeypatch):
    steps = []

    def counting(step):
        return lambda: steps.append(step())

    monkeypatch.setattr(inference, "end_tokens", lambda tokenizer: set(range(len(tokenizer))))  # any token is an end
    replayed(monkeypatch, runs.full, prompts[:1], 120, counting)
    assert 0 < len(steps) < 2 * inference.ASK_EVERY


@pytest.mark.parametrize(
    "error", [RuntimeError("capturing"), torch.OutOfMemoryError("no room"), TypeError("logits_to_keep")]
)
def test_what_cannot_be_captured_is_left_to_generate(runs, error, sdpa, monkeypatch):
    def fail(step):
        raise error

    monkeypatch.setattr(inference, "_captured", fail)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    assert inference._replay(runs.full.model, **inputs, max_new_tokens=4, pad_token_id=0, eos_token_id=[2]) is None
