"""Checks for the exercises of 05_inference: room to answer, padding, the scale of an adapter."""

from __future__ import annotations

from collections.abc import Callable

from helpers.data import Example
from helpers.exercises import check, need, number
from helpers.settings import IGNORED
from helpers.sources import quiet

import torch


@check
def room_to_answer(tokens, *, examples: list[Example], tokenizer) -> str:
    """The smallest ``max_new_tokens`` that leaves room for every reference answer and its end token."""
    supervised = [sum(label != IGNORED for label in e.labels) for e in examples]
    said, truth = number(tokens, "tokens"), max(supervised)
    need(said != max(len(e.input_ids) for e in examples), "that counts the question as well; only new tokens count.")
    need(
        said != truth - 1,
        f"the longest answer would fit, but not its {tokenizer.eos_token}: it would end at the limit.",
    )
    need(said >= truth, f"at {said:g}, {sum(n > said for n in supervised)} answers would be cut.")
    need(said == truth, f"{said:g} is enough, but fewer would do.")
    return f"{truth} tokens. The profile leaves more room, since a model may take another way to the number."


@check
def padded_right(same, *, load: Callable, tokenizer, prompts: list[list[dict]], limit: int) -> str:
    """Which prompts of a batch keep their answer when the padding stands on the right; measured by asking."""
    need(not isinstance(same, int | str), "give the numbers of the rows as a set, such as {1, 2}.")
    said, model = set(same), load()
    need(said <= set(range(len(prompts))), f"the prompts are numbered 0 to {len(prompts) - 1}.")

    def answers(side: str) -> tuple[list[str], list[bool]]:
        inputs = tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True,
            tokenizer_kwargs={"padding_side": side},
        ).to(model.device)  # fmt: skip
        with torch.inference_mode(), quiet():  # transformers warns of the padding that is asked about
            out = model.generate(**inputs, max_new_tokens=limit, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        new = out[:, inputs["input_ids"].shape[1] :]
        return tokenizer.batch_decode(new, skip_special_tokens=True), inputs["attention_mask"].all(dim=1).tolist()

    (left, _), (right, full) = answers("left"), answers("right")
    kept = {n for n, (a, b) in enumerate(zip(left, right, strict=True)) if a == b}
    expected = {n for n, whole in enumerate(full) if whole}
    need(
        said in (kept, expected),
        f"you said {sorted(said)}; asked, {len(kept)} of {len(prompts)} kept their answer. Where does the first new token go "
        "in each row, and what stands before it?",
    )
    return (
        f"rows without padding ({sorted(expected)}) answer as before. In the others the answer begins after padding. "
        f"Measured: {sorted(kept)} kept their answer."
    )


@check
def scaled_adapter(scale, *, load: Callable) -> str:
    """A function that multiplies the update of a loaded adapter; tried with the factors 1, 0.5 and 0 on fresh loads."""

    def deltas(factor: float | None) -> list[torch.Tensor]:
        model = load()
        if factor is not None:
            returned = scale(model, factor)
            model = model if returned is None else returned
        layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
        need(bool(layers), "there is no adapter left on the model: scale it before it is merged.")
        return [layer.get_delta_weight("default").detach().float() for layer in layers[:6]]

    whole = deltas(None)
    for factor in (1.0, 0.5, 0.0):
        for before, after in zip(whole, deltas(factor), strict=True):
            reach = (after.norm() / before.norm()).item()
            need(
                factor != 0.5 or abs(reach - 0.25) > 0.02,
                "at 0.5 a quarter of the update is left: B A is a product, so scale one factor, not both.",
            )
            need(
                torch.allclose(after, factor * before, rtol=0.02, atol=1e-6),
                f"with the factor {factor:g}, {reach:.2f} of the update is left, not {factor:g}.",
            )
    return "1 leaves the adapter, 0 gives the base, and 0.5 lies half way: a merged model can be mixed like that."
