"""Held-out loss and task score of a model, always on the same rows in the same order."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from helpers.data import Data, Example, fingerprint
from helpers.inference import generate
from helpers.settings import IGNORED
from helpers.sources import answer_of, quiet

import torch

TOKENS_AT_A_TIME = 4096  # of a padded batch whose loss is measured: bounds the logits


def held_out_loss(model, examples: list[Example]) -> dict:
    """Mean negative log-likelihood of the supervised tokens, in nats per token, and their number.

    From the model's own forward pass, so it is right for any model. Rows are padded on the right;
    padding and prompts carry no label.
    """
    total, tokens = 0.0, 0
    was_training = model.training
    model.eval()
    ordered = sorted(examples, key=lambda e: len(e.input_ids), reverse=True)
    while ordered:
        longest = len(ordered[0].input_ids)
        size = max(TOKENS_AT_A_TIME // longest, 1)
        rows, ordered = ordered[:size], ordered[size:]
        short = [longest - len(r.input_ids) for r in rows]
        ids = torch.tensor([r.input_ids + [0] * n for r, n in zip(rows, short, strict=True)], device=model.device)
        labels = torch.tensor([r.labels + [IGNORED] * n for r, n in zip(rows, short, strict=True)], device=model.device)
        mask = torch.tensor([[1] * (longest - n) + [0] * n for n in short], device=model.device)
        with torch.no_grad():  # not inference_mode: what autograd functions save there cannot be trained on later
            scores = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        kept = labels[:, 1:] != IGNORED
        scores, targets = scores[kept].float(), labels[:, 1:][kept]
        # torch's cross_entropy in fp32 is off by some 1e-5 per token on a CPU; logsumexp is not
        total += (scores.logsumexp(-1) - scores.gather(1, targets[:, None])[:, 0]).sum().item()
        tokens += len(targets)
    model.train(was_training)
    return {"loss": total / max(tokens, 1), "tokens": tokens}


def answers(model, tokenizer, examples: list[Example], max_new_tokens: int, batch_size: int) -> list[str]:
    """The model's greedy reply to each example's prompt, in the order given; batches hold prompts of like length."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    replies = [""] * len(examples)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        prompts, tools = [examples[i].prompt for i in part], [examples[i].tools for i in part]
        for index, reply in zip(part, generate(model, tokenizer, prompts, max_new_tokens, tools), strict=True):
            replies[index] = reply
    return replies


def score(examples: list[Example], replies: list[str]) -> list[bool]:
    """For each reply, whether it ends in the reference's answer, by the rule of :func:`helpers.sources.answer_of`."""
    return [
        answer_of(reply) is not None and answer_of(reply) == answer_of(example.reference)
        for example, reply in zip(examples, replies, strict=True)
    ]


@contextlib.contextmanager
def _sdpa(model, settings) -> Iterator[None]:
    """SDPA while a model answers, unless you chose the attention: token by token it is faster on a CPU too, where training
    is faster without it (see helpers.device)."""
    usual = model.config._attn_implementation
    with quiet():  # some families cannot change theirs, and say so
        model.set_attn_implementation("sdpa" if settings.attention is None and model._supports_sdpa else usual)
    try:
        yield
    finally:
        with quiet():
            model.set_attn_implementation(usual)


def evaluate(model, tokenizer, data: Data, settings, replies_kept: int = 24) -> dict:
    """Measure a model on the held-out rows.

    Returns:
        ``loss`` (nats per supervised token), ``tokens``, ``exact_match`` as a list of 0 and 1 in the order of the test
        rows (None where answers cannot be scored), ``harder`` likewise, ``families``, some ``replies``, ``seconds``,
        and ``fingerprint`` of the rows.
    """
    start = time.perf_counter()
    result = held_out_loss(model, data.test) | {"exact_match": None, "harder": None, "families": None}
    asked = data.test + data.harder if data.scored else data.test[:replies_kept]
    with _sdpa(model, settings):
        replies = answers(model, tokenizer, asked, settings.max_new_tokens, settings.eval_batch_size)
    if data.scored:
        right = [int(ok) for ok in score(asked, replies)]
        result["exact_match"] = right[: len(data.test)]
        result["families"] = [e.family for e in data.test]
        result["harder"] = right[len(data.test) :] or None
    result["replies"] = [
        {"question": e.prompt[-1]["content"], "reference": e.reference, "reply": reply}
        for e, reply in zip(data.test[:replies_kept], replies, strict=False)
    ]
    result["seconds"] = time.perf_counter() - start
    result["fingerprint"] = fingerprint(data.test + data.harder)
    return result
