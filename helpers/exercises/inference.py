"""Checks for the exercises of 05_inference: room to answer, padding, the scale of an adapter."""

from __future__ import annotations

from collections.abc import Callable

from helpers.data import Example
from helpers.exercises import check, expect, need
from helpers.settings import IGNORED
from helpers.sources import quiet

import torch


@check
def room_to_answer(tokens: float, *, examples: list[Example], tokenizer) -> str:
    """The smallest ``max_new_tokens`` that leaves room for every reference answer and its end token."""
    supervised = [sum(label != IGNORED for label in example.labels) for example in examples]
    truth, longest = max(supervised), max(len(example.input_ids) for example in examples)
    end = f"the longest answer would fit, but not its {tokenizer.eos_token}: it would end at the limit."
    cut = f"at {tokens:g}, {sum(count > tokens for count in supervised)} answers would be cut."
    other = f"{tokens:g} is enough, but fewer would do." if tokens > truth else cut
    question = "that counts the question as well; only new tokens count."
    expect(tokens, truth, other, (longest, question), (truth - 1, end))
    return f"{truth} tokens. The profile leaves more room, since a model may take another way to the number."


@check
def padded_right(same: set, *, load: Callable, tokenizer, prompts: list[list[dict]], limit: int) -> str:
    """Which prompts of a batch keep their answer when the padding is on the right; measured by asking."""
    need(same <= set(range(len(prompts))), f"the prompts are numbered 0 to {len(prompts) - 1}.")
    model, answers = load(), []
    template = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt", "padding": True}
    greedy = {"max_new_tokens": limit, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    for side in ("left", "right"):
        inputs = tokenizer.apply_chat_template(prompts, tokenizer_kwargs={"padding_side": side}, **template)
        with torch.inference_mode(), quiet():  # transformers warns about the padding on the right
            out = model.generate(**inputs.to(model.device), **greedy)
        answers.append(tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    measured = {row for row, (left, right) in enumerate(zip(*answers, strict=True)) if left == right}
    unpadded = {row for row, full in enumerate(inputs["attention_mask"].all(dim=1).tolist()) if full}
    kept = f"you say {sorted(same)}; in fact {len(measured)} of {len(prompts)} keep their answer"
    need(same in (measured, unpadded), f"{kept}. Where is the first new token of each row, and what stands before it?")
    others = "In the others the answer begins after padding."
    return f"rows without padding ({sorted(unpadded)}) answer as before. {others} Measured: {sorted(measured)}."


@check
def scaled_adapter(scale: Callable, *, load: Callable) -> str:
    """A function that multiplies the update of a loaded adapter; tried with the factors 1, 0.5 and 0 on fresh loads."""

    def updates(model) -> list[torch.Tensor]:
        layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
        need(layers, "there is no adapter left on the model: scale it before it is merged.")
        return [layer.get_delta_weight("default").detach().float() for layer in layers[:6]]

    full = updates(load())
    for factor in (1.0, 0.5, 0.0):
        model = load()
        for before, after in zip(full, updates(scale(model, factor) or model), strict=True):
            share = (after.norm() / before.norm()).item()
            left = f"with the factor {factor:g}, {share:.2f} of the update is left, not {factor:g}."
            quarter = "at 0.5 a quarter of the update is left: B A is a product, so scale one factor, not both."
            squared = factor == 0.5 and abs(share - 0.25) < 0.02
            need(torch.allclose(after, factor * before, rtol=0.02, atol=1e-6), quarter if squared else left)
    return "1 leaves the adapter, 0 gives the base, and 0.5 lies half way: a merged model can be mixed like that."
