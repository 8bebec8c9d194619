"""The usual wrong answers to the exercises of 00 to 04 are told why."""

import copy
from dataclasses import replace
from types import SimpleNamespace

from helpers import records
from helpers.exercises import comparison, machine, training
from helpers.exercises import data as rows
from helpers.memory import SHAPES, lora_parameters
from helpers.models import base_tensor
from helpers.settings import IGNORED, settings_for
from helpers.sources import resolve

import torch
from peft import LoraConfig, get_peft_model


def test_00_wrong_answers_are_told_why():
    assert "gradient" in machine.bytes_kept(4, 12).message
    assert "momentum: that is 4 bytes too many" in machine.bytes_kept(8, 16).message
    assert "per parameter" in machine.bytes_kept(8_000_000, 12).message
    card = {"shape": SHAPES["Llama-2-7B"], "method": "lora", "memory": 24e9, "length": 512}
    verdicts = [machine.largest_batch(n, **card) for n in range(1, 9)]
    assert [v.state for v in verdicts].count("right") == 1
    assert "one more" in verdicts[0].message and "there are 24.0 GB" in verdicts[-1].message
    assert "whole number" in machine.largest_batch(2.5, **card).message


def test_01_wrong_answers_are_told_why(tokenizer, data):
    example, eos = data.train[0], tokenizer.eos_token_id

    def broken(change):
        row = copy.deepcopy(example)
        change(row)
        return rows.never_stops(row, example=example, tokenizer=tokenizer).message

    assert "still among the labels" in broken(lambda row: None)
    assert "input_ids changed" in broken(lambda row: row.input_ids.pop())
    assert "one label for each token" in broken(lambda row: row.labels.pop())
    assert "mask only the end" in broken(lambda row: setattr(row, "labels", [IGNORED] * len(row.labels)))
    assert "with the label -100" in broken(
        lambda row: setattr(row, "labels", [tokenizer.pad_token_id if x == eos else x for x in row.labels])
    )

    talk = [{"role": r, "content": "Two?"} for r in ("user", "assistant")] * 2
    assert "more than the last answer" in rows.two_turns(talk, 1, tokenizer=tokenizer).message
    assert "Count the turns" in rows.two_turns(talk, 4, tokenizer=tokenizer).message
    assert "two questions" in rows.two_turns(talk[:2], 2, tokenizer=tokenizer).message
    assert rows.two_turns([{"role": "system", "content": "Be short."}, *talk], 2, tokenizer=tokenizer).state == "right"


def pretend(monkeypatch, **fields) -> dict:
    """Let the checks get records with these fields instead of training; what is put into the result stands for a run."""
    special = {}
    monkeypatch.setattr(
        training, "train", lambda settings, _: SimpleNamespace(record=SimpleNamespace(**special.get(settings, fields)))
    )
    return special


def step_of(*lines: str):
    """A training step made of these lines, which return the loss as a number."""
    names = {"torch": torch}
    exec("\n    ".join(["def step(model, batch, optimizer, max_norm):", *lines, "return loss.item()"]), names)
    return names["step"]


def test_a_training_step_that_lacks_a_line_is_told_which():
    lines = (
        "loss = model(**batch).loss",
        "loss.backward()",
        "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)",
    )
    lines += "optimizer.step()", "optimizer.zero_grad()"
    first = [lines[4], *lines[:4]]  # clearing at the start is as good
    assert training.training_step(step_of(*lines)).state == training.training_step(step_of(*first)).state == "right"
    for missing, words in (
        (1, "no weight moved"),
        (2, "clip the gradients"),
        (3, "no weight moved"),
        (4, "zero_grad()"),
    ):
        verdict = training.training_step(step_of(*lines[:missing], *lines[missing + 1 :]))
        assert verdict.state == "not yet" and words in verdict.message, (missing, verdict)
    early = [*lines[:2], lines[4], *lines[2:4]]
    assert "cleared after optimizer.step()" in training.training_step(step_of(*early)).message
    nothing = training.training_step(step_of(*lines, "return None"))
    assert "Return the loss as a number" in nothing.message
    empty = training.training_step(lambda model, batch, optimizer, max_norm: None)
    assert empty.state == "not answered yet" and "give training_step" in empty.message


def test_02_wrong_answers_are_told_why(tiny, data, tmp_path, monkeypatch):
    shape = resolve(tiny).shape

    def config(**changes):
        return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", **changes)

    now = lora_parameters(shape, tiny.rank, tiny.targets)
    verdicts = [training.doubled_rank(n, config(), settings=tiny) for n in (2 * now, now, 4 * now, 2 * now + 1)]
    assert [v.state for v in verdicts] == ["right"] + ["not yet"] * 3
    assert "old rank" in verdicts[1].message and "added, not multiplied" in verdicts[2].message
    half = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    assert "change alpha with the rank" in training.doubled_rank(2 * now, half, settings=tiny).message
    fewer = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert "same layers" in training.doubled_rank(2 * now, fewer, settings=tiny).message
    assert "class LoraConfig for wider" in training.doubled_rank(2 * now, {"r": 16}, settings=tiny).message

    few = tiny.change(runs_dir=str(tmp_path), max_steps=3)
    given = {"few": few, "rows": data}
    assert (
        "two would see different rows"
        in training.same_step_fewer_activations(few.change(batch_size=4), **given).message
    )
    assert "100 %" in training.same_step_fewer_activations(few.change(learning_rate=1e-4), **given).message
    own = tiny.change(max_steps=3, batch_size=4)
    assert "over your own run" in training.same_step_fewer_activations(own, **given).message
    trained = pretend(monkeypatch, steps=[{"loss": 5.0}, {"loss": 4.0}])
    assert training.same_step_fewer_activations(few.change(checkpointing=True), **given).state == "right"
    trained[few.change(checkpointing=True)] = {"steps": [{"loss": 5.0}, {"loss": 3.0}]}
    verdict = training.same_step_fewer_activations(few.change(checkpointing=True), **given)
    assert "do not compute the same step" in verdict.message


def test_03_wrong_answers_are_told_why(tiny, data, tmp_path, monkeypatch):
    weight = base_tensor(resolve(tiny).folder, "model.layers.0.self_attn.q_proj.weight")
    assert "rest rounds it away" in training.half_move(1e-7, weight=weight).message
    assert "smaller" in training.half_move(1e-2, weight=weight).message
    slow = settings_for("tiny", "full")
    lora = settings_for("tiny", "lora").learning_rate
    config = LoraConfig(r=8, target_modules="all-linear")

    def said(to_train, rate):
        return training.trains_all(to_train, rate, settings=slow)

    assert said(lambda model: get_peft_model(model, config), lora).state == "not answered yet"
    assert "carries an adapter" in said(lambda model: get_peft_model(model, config), slow.learning_rate).message
    assert "LoRA's rate" in said(lambda model: model, lora).message
    assert "return the model" in said(lambda model: None, slow.learning_rate).message
    assert "frozen" in said(lambda model: model.requires_grad_(False), slow.learning_rate).message
    assert "not the rate" in said(lambda model: model, 1.0).message
    assert said(lambda model: model, slow.learning_rate).state == "right"
    slow = settings_for("tiny", "full", runs_dir=str(tmp_path), max_steps=2)
    fast = slow.change(learning_rate=4 * slow.learning_rate)
    given = {"slow": slow, "fast": fast, "rows": data}
    pretend(monkeypatch, update=[{"relative_norm": 0.01}])[fast] = {"update": [{"relative_norm": 0.035}]}
    assert "gradients may be alike" in training.farther_by(1, **given).message
    assert "divides the gradient" in training.farther_by(16, **given).message  # the square
    assert training.farther_by(4, **given).state == training.farther_by(3, **given).state == "right"


def test_04_wrong_answers_are_told_why(runs):
    given = {"share": 0.9, "half_width": 0.02}
    assert "too wide" in comparison.questions_needed(400, **given).message
    assert "fewer would do" in comparison.questions_needed(2000, **given).message
    assert "one-sided" in comparison.wins_needed(5, losses=0).message
    assert "too often" in comparison.wins_needed(4, losses=0).message
    assert "6 to 0 is enough" in comparison.wins_needed(7, losses=0).message

    given = {"differences": [25, -35, 7.5], "half_width": 25}
    verdicts = [comparison.seeds_needed(n, **given) for n in range(1, 12)]
    assert [v.state for v in verdicts].count("right") == 1 and verdicts[8].state == "right"
    assert "one seed" in verdicts[0].message and "76.7 points" in verdicts[2].message
    assert "too wide" in verdicts[5].message and "fewer would do" in verdicts[10].message
    found = records.load_series(runs.folder / "tiny")
    last = found[-1]
    rows = replace(last, seed=9, evaluation=last.evaluation | {"fingerprint": "0"})
    assert "for its evaluation rows" in comparison.refused(rows, records=found).message
    rate = replace(last, seed=9, settings=last.settings | {"learning_rate": 1e-9})
    assert "may differ" in comparison.refused(rate, records=found).message
    for change in (
        {"model": last.model | {"fingerprint": "0"}},
        {"decisions": last.decisions | {"precision": {"value": "fp8"}}},
    ):
        assert comparison.refused(replace(last, seed=9, **change), records=found).state == "right"
