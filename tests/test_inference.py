"""Answers of a model, at once and piece by piece."""

from helpers.inference import generate, stream


def test_streamed_pieces_make_the_same_answer(runs):
    prompt = runs.data.test[0].prompt
    pieces = list(stream(runs.full.model, runs.full.tokenizer, prompt, 12))
    assert "".join(pieces).strip() == generate(runs.full.model, runs.full.tokenizer, [prompt], 12)[0]
