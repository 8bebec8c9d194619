"""Held-out loss and task score of a model, always on the same rows in the same order."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from helpers.data import Data, Example, fingerprint, unrelated
from helpers.inference import generate
from helpers.settings import IGNORED
from helpers.sources import answer_of, quiet

import torch
from tqdm import tqdm  # the plain bar: its text survives in a saved notebook

TOKENS_AT_A_TIME = 4096  # of a padded batch whose loss is measured: bounds the logits
PROSE_REPLIES = 8
INSTRUCTION = "Work out the answer and end your reply with 'The answer is: N', where N is a whole number."


def token_losses(model, examples: list[Example]) -> list[list[float]]:
    """The negative log-likelihood of each supervised token of each example, in nats, by the model's own forward pass."""
    found: list[list[float]] = [[]] * len(examples)
    was_training = model.training
    model.eval()
    waiting = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids), reverse=True)
    while waiting:
        longest = len(examples[waiting[0]].input_ids)
        size = max(TOKENS_AT_A_TIME // longest, 1)
        part, waiting = waiting[:size], waiting[size:]
        rows = [(examples[i], longest - len(examples[i].input_ids)) for i in part]
        ids = torch.tensor([row.input_ids + [0] * pad for row, pad in rows], device=model.device)
        labels = torch.tensor([row.labels + [IGNORED] * pad for row, pad in rows], device=model.device)
        mask = torch.tensor([[1] * (longest - pad) + [0] * pad for _, pad in rows], device=model.device)
        with torch.no_grad():  # not inference_mode: what autograd functions save there cannot be trained on later
            scores = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        kept = labels[:, 1:] != IGNORED
        scores, targets = scores[kept].float(), labels[:, 1:][kept]
        # torch's cross_entropy in fp32 is off by some 1e-5 per token on a CPU; logsumexp is not
        losses = scores.logsumexp(-1) - scores.gather(1, targets[:, None])[:, 0]
        for i, each in zip(part, losses.split(kept.sum(1).tolist()), strict=True):
            found[i] = each.tolist()
    model.train(was_training)
    return found


def held_out_loss(model, examples: list[Example]) -> dict:
    """Mean loss in nats per supervised token, the number of those ``tokens``, and ``losses``: [sum, tokens] per example."""
    each = token_losses(model, examples)
    total, tokens = sum(map(sum, each)), sum(map(len, each))
    losses = [[round(sum(row), 4), len(row)] for row in each]
    return {"loss": total / max(tokens, 1), "tokens": tokens, "losses": losses}


def answers(model, tokenizer, examples: list[Example], max_new_tokens: int, batch_size: int) -> list[str]:
    """The model's greedy reply to each example's prompt, in the order given; batches hold prompts of like length."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].asked))
    replies = [""] * len(examples)
    line = {"bar_format": "asked {n_fmt} of {total_fmt}", "file": sys.stdout, "leave": False, "disable": not order}
    with tqdm(total=len(order), mininterval=0, miniters=1, **line) as progress:
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            prompts, tools = [examples[i].prompt for i in part], [examples[i].tools for i in part]
            for index, reply in zip(part, generate(model, tokenizer, prompts, max_new_tokens, tools), strict=True):
                replies[index] = reply
            progress.update(len(part))
    return replies


def score(examples: list[Example], replies: list[str]) -> list[bool]:
    """For each reply, whether it ends in the reference's answer, by the rule of :func:`helpers.sources.answer_of`."""
    pairs = [(answer_of(example.reference), answer_of(reply)) for example, reply in zip(examples, replies, strict=True)]
    return [reply is not None and reply == reference for reference, reply in pairs]


@contextlib.contextmanager
def _sdpa(model, settings) -> Iterator[None]:
    """SDPA while a model answers, unless you chose the attention: token by token it is faster, on a CPU too."""
    usual = model.config._attn_implementation
    with quiet():  # some families cannot change theirs, and say so
        model.set_attn_implementation("sdpa" if settings.attention is None and model._supports_sdpa else usual)
    try:
        yield
    finally:
        with quiet():
            model.set_attn_implementation(usual)


def evaluate(model, tokenizer, data: Data, settings, replies_kept: int = 24) -> dict:
    """Measure a model on the held-out rows, and on text that has nothing to do with them.

    Returns:
        ``loss`` (nats per supervised token), ``tokens`` and ``losses`` of the test rows, see :func:`held_out_loss`;
        ``exact_match`` as a list of 0 and 1 in the order of the test rows (None where answers cannot be scored),
        ``harder`` likewise, ``families``, some ``replies``, ``seconds``, and ``fingerprint`` of the rows;
        ``prose`` with the loss on held-out conversations, its first 8 ``replies`` and ``fingerprint``, or None where the
        data has no such rows; ``general`` and ``unrelated``, the losses of :func:`helpers.data.unrelated`.
    """
    start = time.perf_counter()
    result = held_out_loss(model, data.test) | {"exact_match": None, "harder": None, "families": None, "prose": None}
    result |= {name: held_out_loss(model, rows) for name, rows in unrelated(tokenizer).items()}
    asked = data.test + data.harder if data.scored else data.test[:replies_kept]
    prose = data.prose[:PROSE_REPLIES]
    with _sdpa(model, settings):
        replies = answers(model, tokenizer, asked, settings.max_new_tokens, settings.eval_batch_size)
        # prose takes about twice as many words as a worked answer
        told = answers(model, tokenizer, prose, 2 * settings.max_new_tokens, settings.eval_batch_size)
    if data.prose:
        shown = {"replies": _shown(prose, told), "fingerprint": fingerprint(data.prose)}
        result["prose"] = held_out_loss(model, data.prose) | shown
    if data.scored:
        right = [int(ok) for ok in score(asked, replies)]
        result |= {"exact_match": right[: len(data.test)], "harder": right[len(data.test) :] or None}
        result["families"] = [e.family for e in data.test]
    result["replies"] = _shown(data.test[:replies_kept], replies)
    result["seconds"] = time.perf_counter() - start
    result["fingerprint"] = fingerprint(data.test + data.harder)
    return result


def _shown(examples: list[Example], replies: list[str]) -> list[dict]:
    pairs = zip(examples, replies, strict=False)
    return [{"question": e.prompt[-1]["content"], "reference": e.reference, "reply": reply} for e, reply in pairs]


def baselines(model, tokenizer, data: Data, settings, questions: int = 25) -> dict:
    """What prompts alone get out of a model, on the first test questions: the scores that training has to beat.

    Every prompt says how to answer. Worked examples are training rows, given as earlier turns of the conversation.

    Returns:
        For each prompt ``right`` (a list of 0 and 1) and ``prompt`` (that of the first question); and ``guess``, the share
        that is right when each answer is drawn at random from the training answers of its family.
    """
    known: dict[str, list[Example]] = {}
    for row in data.train:
        if answer_of(row.reference) is not None:
            known.setdefault(row.family, []).append(row)
    asked, spread = data.test[:questions], [rows[0] for rows in known.values()][:6]
    shown = {
        "instructed": lambda row: [],
        "six examples": lambda row: spread,
        "three of the family": lambda row: known[row.family][:3],
    }
    result: dict = {}
    for name, examples in shown.items():
        prompts = [_instructed([*examples(row), row]) for row in asked]
        with _sdpa(model, settings):  # long prompts, so few at a time; time to think, so twice the tokens
            replies = answers(model, tokenizer, prompts, 2 * settings.max_new_tokens, min(settings.eval_batch_size, 30))
        result[name] = {"right": [int(ok) for ok in score(asked, replies)], "prompt": prompts[0].prompt}
    answered = {family: [answer_of(row.reference) for row in rows] for family, rows in known.items()}
    guesses = [answered[row.family].count(answer_of(row.reference)) / len(answered[row.family]) for row in data.test]
    return result | {"guess": sum(guesses) / len(guesses)}


def _instructed(rows: list[Example]) -> Example:
    first, *others = [turn for row in rows for turn in row.messages]
    return Example([first | {"content": f"{INSTRUCTION}\n\n{first['content']}"}, *others], rows[-1].family)
