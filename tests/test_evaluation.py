"""Held-out loss and score do not depend on how rows are batched."""

from helpers.data import Example
from helpers.evaluation import INSTRUCTION, answers, held_out_loss, score, token_losses
from helpers.headless.pages import as_on_a_terminal
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


def test_the_losses_of_examples_come_in_their_order_and_add_up(runs):
    model, rows = load_base(resolve(runs.settings("full")), "fp32"), runs.data.prose[:5] + runs.data.test[:3]
    found = held_out_loss(model, rows)
    assert [tokens for _, tokens in found["losses"]] == [sum(x >= 0 for x in e.labels) for e in rows]
    assert sum(loss for loss, _ in found["losses"]) == pytest.approx(found["loss"] * found["tokens"], rel=1e-4)
    assert sum(token_losses(model, rows[3:4])[0]) == pytest.approx(found["losses"][3][0], rel=1e-4)


def test_an_evaluation_holds_prose_and_what_is_unrelated(runs):
    for run in (runs.base, runs.lora, runs.full):
        found = run.record.evaluation
        assert len(found["prose"]["replies"]) == 8 and len(found["prose"]["losses"]) == len(runs.data.prose)
        assert found["general"]["tokens"] > 2000 and len(found["unrelated"]["losses"]) == 60
        for name in ("prose", "general", "unrelated"):
            assert 0 < found[name]["loss"] < 8


def test_the_baselines_are_what_prompts_get_out_of_the_base(runs):
    found = runs.base.record.evaluation["baselines"]
    first, turns = runs.data.test[0], {"instructed": 1, "six examples": 13, "three of the family": 7}
    for name, number in turns.items():
        prompt = found[name]["prompt"]
        assert len(prompt) == number and prompt[0]["content"].startswith(INSTRUCTION)
        assert prompt[-1]["content"].endswith(first.prompt[-1]["content"]) and len(found[name]["right"]) == 20
    of_family = {e.prompt[-1]["content"] for e in runs.data.train if e.family == first.family}
    shown = {turn["content"].removeprefix(INSTRUCTION).strip() for turn in found["three of the family"]["prompt"][:6:2]}
    assert shown <= of_family and 0 < found["guess"] < 0.2


def test_a_batch_answers_as_single_questions_do(runs):
    model = load_base(resolve(runs.settings("full")), "fp32")
    together = answers(model, runs.full.tokenizer, runs.data.test[:6], 12, 6)
    alone = [generate(model, runs.full.tokenizer, [e.prompt], 12)[0] for e in runs.data.test[:6]]
    assert together == alone


def test_the_number_of_questions_asked_is_one_line_that_is_updated_and_goes(monkeypatch, capsys):
    monkeypatch.setattr("helpers.evaluation.generate", lambda model, tokenizer, prompts, *_: ["a reply"] * len(prompts))
    rows = [Example([{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "b"}]) for n in range(6)]
    assert answers(None, None, rows, 2, 4) == ["a reply"] * 6
    printed = capsys.readouterr().out
    assert [part.strip() for part in printed.split("\r") if part.strip()] == [f"asked {n} of 6" for n in (0, 4, 6)]
    assert "\n" not in printed and as_on_a_terminal(printed) == ""
    assert answers(None, None, [], 2, 4) == [] and capsys.readouterr().out == ""
