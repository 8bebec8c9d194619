"""Checks for the exercises of 05_inference: room to answer, padding, the scale of an adapter."""

from __future__ import annotations

from collections.abc import Callable

from helpers.data import Example
from helpers.exercises import check, need, unlike
from helpers.settings import IGNORED
from helpers.sources import quiet

import torch


@check
def room_to_answer(tokens: float, *, examples: list[Example], tokenizer) -> str:
    """The smallest ``max_new_tokens`` that leaves room for every reference answer and its end token."""
    supervised = [sum(label != IGNORED for label in example.labels) for example in examples]
    truth, longest = max(supervised), max(len(example.input_ids) for example in examples)
    end = f"the longest answer would fit, but not its {tokenizer.eos_token}: it would end at the limit."
    unlike(tokens, truth, (longest, "that counts the question as well; only new tokens count."), (truth - 1, end))
    need(tokens >= truth, f"at {tokens:g}, {sum(count > tokens for count in supervised)} answers would be cut.")
    need(tokens == truth, f"{tokens:g} is enough, but fewer would do.")
    return f"{truth} tokens. The profile leaves more room, since a model may take another way to the number."


@check
def padded_right(same: set, *, load: Callable, tokenizer, prompts: list[list[dict]], limit: int) -> str:
    """Which prompts of a batch keep their answer when the padding stands on the right; measured by asking."""
    need(same <= set(range(len(prompts))), f"the prompts are numbered 0 to {len(prompts) - 1}.")
    model = load()

    def answers(side: str) -> tuple[list[str], list[bool]]:
        options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt", "padding": True}
        inputs = tokenizer.apply_chat_template(prompts, tokenizer_kwargs={"padding_side": side}, **options).to(
            model.device
        )
        with torch.inference_mode(), quiet():  # transformers warns of the padding that is asked about
            out = model.generate(**inputs, max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        new = out[:, inputs["input_ids"].shape[1] :]
        return tokenizer.batch_decode(new, skip_special_tokens=True), inputs["attention_mask"].all(dim=1).tolist()

    (left, _), (right, unpadded) = answers("left"), answers("right")
    measured = {row for row, (a, b) in enumerate(zip(left, right, strict=True)) if a == b}
    expected = {row for row, full in enumerate(unpadded) if full}
    need(
        same in (measured, expected),
        f"you say {sorted(same)}; in fact {len(measured)} of {len(prompts)} keep their answer. Where does the first new token "
        "go in each row, and what stands before it?",
    )
    return (
        f"rows without padding ({sorted(expected)}) answer as before. In the others the answer begins after padding. "
        f"Measured: {sorted(measured)} keep their answer."
    )


@check
def scaled_adapter(scale: Callable, *, load: Callable) -> str:
    """A function that multiplies the update of a loaded adapter; tried with the factors 1, 0.5 and 0 on fresh loads."""

    def updates(factor: float | None) -> list[torch.Tensor]:
        model = load()
        if factor is not None and (returned := scale(model, factor)) is not None:
            model = returned
        layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
        need(bool(layers), "there is no adapter left on the model: scale it before it is merged.")
        return [layer.get_delta_weight("default").detach().float() for layer in layers[:6]]

    full = updates(None)
    for factor in (1.0, 0.5, 0.0):
        for before, after in zip(full, updates(factor), strict=True):
            share = (after.norm() / before.norm()).item()
            if factor == 0.5:
                quarter = "at 0.5 a quarter of the update is left: B A is a product, so scale one factor, not both."
                unlike(share, factor, (0.25, quarter), near=0.08)
            left = f"with the factor {factor:g}, {share:.2f} of the update is left, not {factor:g}."
            need(torch.allclose(after, factor * before, rtol=0.02, atol=1e-6), left)
    return "1 leaves the adapter, 0 gives the base, and 0.5 lies half way: a merged model can be mixed like that."
