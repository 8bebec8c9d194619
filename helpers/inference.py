"""Answers of a model: in batches, streamed piece by piece, and as raw scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from helpers.sources.templates import end_tokens, render

import torch
import torch.nn.functional as F
from transformers import StaticCache, TextIteratorStreamer
from transformers.cache_utils import StaticLayer

ASK_EVERY = 16  # tokens between two looks at whether every answer has ended: each look waits for the GPU


def generate(
    model, tokenizer, conversations: list[list[dict]], max_new_tokens: int = 64, tools: list | None = None
) -> list[str]:
    """Greedy answers to a batch of conversations, each ending with a user message.

    Prompts are padded on the left, so that every answer starts right after its question. ``tools`` holds, for each
    conversation, what the model may call in it.
    """
    if not conversations:
        return []
    tools = tools or [None] * len(conversations)
    texts = [render(tokenizer, each, may_call, True) for each, may_call in zip(conversations, tools, strict=True)]
    inputs = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left")
    inputs = inputs.to(model.device)
    was_training = model.training
    model.eval()
    options = _greedy(model, tokenizer, max_new_tokens)
    with torch.inference_mode():
        out = _replay(model, **inputs, **options) if model.device.type == "cuda" else None
        out = model.generate(**inputs, **options) if out is None else out
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


def _replay(model, input_ids, attention_mask, max_new_tokens, pad_token_id, eos_token_id, **_) -> torch.Tensor | None:
    """What ``model.generate`` returns, from one captured step: a graph launches some thousand kernels at once; or None."""
    rows, length = input_ids.shape
    cache = StaticCache(config=model.config, max_cache_len=length + max_new_tokens)
    if any(type(layer) is not StaticLayer for layer in cache.layers) or model.config._attn_implementation != "sdpa":
        return None
    visible = F.pad(attention_mask, (0, max_new_tokens), value=1)
    position = (attention_mask.cumsum(1) - 1).clamp(min=0)
    out = F.pad(input_ids, (0, max_new_tokens), value=pad_token_id)
    ends, column = torch.tensor(eos_token_id, device=out.device), torch.tensor([length], device=out.device)
    ended = torch.zeros(rows, 1, dtype=torch.bool, device=out.device)
    token = input_ids

    def step():
        inputs = {"attention_mask": visible, "position_ids": position, "past_key_values": cache, "logits_to_keep": 1}
        new = model(input_ids=token, **inputs).logits[:, -1:].float().argmax(-1).masked_fill(ended, pad_token_id)
        out.index_copy_(1, column, new)
        ended.logical_or_(torch.isin(new, ends))
        column.add_(1)
        return new

    def advance():
        token.copy_(step())
        position.add_(1)

    try:
        token, position = step(), position[:, -1:] + 1
        if max_new_tokens > 1:
            advance()  # once without a graph, so that nothing is set up while it is captured
        replay = _captured(advance)
    except Exception:  # a step that waits for the GPU, or another form of forward pass: generate says what is wrong
        return None
    for made in range(2, max_new_tokens):
        if made % ASK_EVERY == 0 and ended.all():
            break
        replay()
    return out


def _captured(work: Callable[[], None]) -> Callable[[], None]:
    """The kernels that ``work`` launches, as one graph; capturing does not run them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def stream(model, tokenizer, conversation: list[dict], max_new_tokens: int = 64) -> Iterator[str]:
    """The pieces of one greedy answer, as they come. An error of the model is raised here, after the pieces before it."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    text = render(tokenizer, conversation, answer_next=True)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt").to(model.device)

    def work() -> None:
        try:
            with torch.inference_mode():
                model.generate(**inputs, streamer=streamer, **_greedy(model, tokenizer, max_new_tokens))
        finally:
            streamer.end()

    pool = ThreadPoolExecutor(1)
    answer = pool.submit(work)
    pool.shutdown(wait=False)
    yield from streamer
    answer.result()


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    """The scores of every token at every position: (rows, tokens) in, (rows, tokens, vocabulary) out, as fp32."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        scores = model(input_ids=ids).logits
    model.train(was_training)
    return scores.float()
