"""Held-out loss and score do not depend on how rows are batched."""

from helpers.data import Example
from helpers.evaluation import answers, held_out_loss, score
from helpers.inference import generate
from helpers.models import load_base
from helpers.sources import resolve

import pytest


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
