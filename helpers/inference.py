"""Answers of a model: in batches, streamed piece by piece, and as raw scores."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread

from helpers.sources.templates import end_tokens, render

import torch
from transformers import TextIteratorStreamer


def generate(
    model, tokenizer, conversations: list[list[dict]], max_new_tokens: int = 64, tools: list | None = None
) -> list[str]:
    """Greedy answers to a batch of conversations, each ending with a user message.

    Prompts are padded on the left, so that every answer starts right after its question.

    Args:
        tools: what the model may call, a list or None for each conversation.
    """
    if not conversations:
        return []
    tools = tools or [None] * len(conversations)
    texts = [render(tokenizer, each, may_call, True) for each, may_call in zip(conversations, tools, strict=True)]
    inputs = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left")
    inputs = inputs.to(model.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        out = model.generate(**inputs, **_greedy(model, tokenizer, max_new_tokens))
    model.train(was_training)
    answers = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in answers]


def _greedy(model, tokenizer, max_new_tokens: int) -> dict:
    """Options of ``model.generate``: always the likeliest token, until a token that ends the turn or the limit."""
    switched_off = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    stops = sorted(end_tokens(tokenizer) | {tokenizer.eos_token_id} - {None})
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": stops}
    if getattr(model.config.get_text_config(), "output_router_logits", False):  # of a mixture: for training alone
        ends["output_router_logits"] = False
    return {"max_new_tokens": max_new_tokens, "use_cache": True} | switched_off | ends


def stream(model, tokenizer, conversation: list[dict], max_new_tokens: int = 64) -> Iterator[str]:
    """The pieces of one greedy answer, as they come. An error of the model is raised here, after the pieces before it."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    text = render(tokenizer, conversation, answer_next=True)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode():
                model.generate(**inputs, streamer=streamer, **_greedy(model, tokenizer, max_new_tokens))
        except BaseException as error:
            failures.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failures:
        raise failures[0]


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    """The scores of every token at every position: (rows, tokens) in, (rows, tokens, vocabulary) out, as fp32."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        scores = model(input_ids=ids).logits
    model.train(was_training)
    return scores.float()
