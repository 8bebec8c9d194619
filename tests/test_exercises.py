"""Exercises: every one has a solution that its check accepts, usual wrong answers are told why, none stops a notebook."""

import ast
import copy
import re
from dataclasses import replace
from types import SimpleNamespace

from helpers import inference, records
from helpers.data import IGNORED
from helpers.exercises import Verdict, bugs, check, comparison, machine, need, training
from helpers.exercises import data as rows
from helpers.exercises import inference as using
from helpers.memory import SHAPES, lora_parameters
from helpers.models import plan
from helpers.parameters import find_notebooks
from helpers.scenes import FAULTS, case, fresh
from helpers.settings import ROOT, settings_for
from helpers.sources import base_folder
from helpers.updates import base_tensor

import matplotlib
import nbformat
import pytest
import torch
from peft import LoraConfig

SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))


def code(path) -> list[str]:
    return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def asked(path) -> list[str]:
    """The checks that a notebook calls, in order."""
    return re.findall(r"^exercises\.(\w+)\(", "\n".join(code(path)), re.MULTILINE)


def run(path, **parameters) -> list[Verdict]:
    """Execute a solution in this process, as a kernel would; the verdicts that its cells end in."""
    names, verdicts = {"__name__": "__main__"}, []
    matplotlib.use("Agg")
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        body = ast.parse(cell.source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), path.name, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= {k: v for k, v in parameters.items() if k in names}
        if last and isinstance(value := eval(compile(ast.Expression(last.value), path.name, "eval"), names), Verdict):
            verdicts.append(value)
    return verdicts


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_run_and_their_answers_are_right(path, runs):
    verdicts = run(path, profile="tiny", runs_dir=str(runs.folder))
    assert asked(path) and [v.state for v in verdicts] == ["right"] * len(asked(path)), verdicts


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_solve_the_exercises_of_their_notebook(path):
    assert asked(ROOT / "notebooks" / path.name) == asked(path)
    content = nbformat.read(path, 4)
    nbformat.validate(content)
    assert all(c.outputs == [] and c.execution_count is None for c in content.cells if c.cell_type == "code")
    assert [c for c in content.cells if "parameters" in c.metadata.get("tags", [])]


def test_each_notebook_of_the_core_has_exercises_with_hints_that_unfold():
    assert {p.name for p in find_notebooks()[:6]} <= {p.name for p in SOLUTIONS}
    for path in (ROOT / "notebooks" / p.name for p in SOLUTIONS):
        text = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
        section = text.partition("\n## Exercises")[2].partition("\n## In practice")[0]
        assert len(re.findall(r"^### \d\. ", section, re.M)) == len(asked(path)) >= 2, path.name
        assert section.count("<details><summary>") == section.count("\n\n</details>") >= len(asked(path)), path.name


def test_an_untouched_exercise_says_so_and_stops_nothing(series):
    for path in (ROOT / "notebooks" / p.name for p in SOLUTIONS):
        executed = nbformat.read(series.folder / "notebooks" / path.name, 4)
        said = [
            output["data"]["text/plain"]
            for c in executed.cells
            if c.cell_type == "code" and re.search(r"^exercises\.", c.source, re.M)
            for output in c.outputs
            if output.output_type == "execute_result"
        ]
        assert len(said) == len(asked(path)) and all(s.startswith("Not answered yet: give ") for s in said), said


def test_a_check_turns_whatever_an_answer_does_into_words():
    @check
    def two(first, second, *, limit) -> str:
        need(first + second < limit, "too much")
        return "fine"

    assert repr(two(None, 1, limit=3)) == "Not answered yet: give first, and run this cell again."
    assert two(1, 1, limit=3) == Verdict("right", "fine")
    assert two(2, 2, limit=3) == Verdict("not yet", "too much")
    assert "TypeError" in two("a", 1, limit=3).message
    assert "&lt;b&gt;" in Verdict("right", "<b>")._repr_html_()


def test_00_wrong_answers_are_told_why():
    assert "gradient" in machine.bytes_kept(4, 12).message
    assert "too much" in machine.bytes_kept(8, 16).message
    assert "divide" in machine.bytes_kept(8_000_000, 12).message
    shape = SHAPES["SmolLM2-135M"]
    assert "weights: counted by parameter" in machine.parts_that_grow({"weights", "logits"}, shape=shape).message
    assert "one is missing" in machine.parts_that_grow(["activations"], shape=shape).message
    assert "no part is called" in machine.parts_that_grow({"activation"}, shape=shape).message
    card = {"shape": SHAPES["Llama-2-7B"], "method": "lora", "memory": 24e9, "length": 512}
    verdicts = [machine.largest_batch(n, **card) for n in range(1, 9)]
    assert [v.state for v in verdicts].count("right") == 1
    assert "one more" in verdicts[0].message and "there are 24.0 GB" in verdicts[-1].message
    assert "whole number" in machine.largest_batch(2.5, **card).message


def test_01_wrong_answers_are_told_why(tiny, tokenizer, data):
    longest = max(len(e.input_ids) for part in (data.train, data.validation, data.test, data.harder) for e in part)
    given = {"settings": tiny, "tokenizer": tokenizer}
    assert rows.smallest_max_length(longest, **given).state == "right"
    assert "rows are dropped" in rows.smallest_max_length(longest - 1, **given).message
    assert "loses none either" in rows.smallest_max_length(longest + 1, **given).message

    example, eos = data.train[0], tokenizer.eos_token_id

    def broken(change):
        row = copy.deepcopy(example)
        change(row)
        return rows.never_stops(row, example=example, tokenizer=tokenizer).message

    assert "still among the labels" in broken(lambda row: None)
    assert "input_ids changed" in broken(lambda row: row.input_ids.pop())
    assert "one label for each token" in broken(lambda row: row.labels.pop())
    assert "some of them of the answer" in broken(lambda row: setattr(row, "labels", [IGNORED] * len(row.labels)))
    assert "has the label -100" in broken(
        lambda row: setattr(row, "labels", [tokenizer.pad_token_id if x == eos else x for x in row.labels])
    )

    talk = [{"role": r, "content": "Two?"} for r in ("user", "assistant")] * 2
    assert "not only the last answer" in rows.two_turns(talk, 1, tokenizer=tokenizer).message
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


def test_02_wrong_answers_are_told_why(tiny, data, tokenizer, tmp_path, monkeypatch):
    shape = plan(tiny).shape

    def config(**changes):
        return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", **changes)

    now = lora_parameters(shape, tiny.rank, tiny.targets)
    verdicts = [training.doubled_rank(n, config(), settings=tiny) for n in (2 * now, now, 4 * now, 2 * now + 1)]
    assert [v.state for v in verdicts] == ["right"] + ["not yet"] * 3
    assert "of before" in verdicts[1].message and "added, not multiplied" in verdicts[2].message
    half = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    assert "two things changed" in training.doubled_rank(2 * now, half, settings=tiny).message
    fewer = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert "same layers" in training.doubled_rank(2 * now, fewer, settings=tiny).message
    assert "LoraConfig, not dict" in training.doubled_rank(2 * now, {"r": 16}, settings=tiny).message

    given = {"settings": tiny, "tokenizer": tokenizer, "prompt": data.test[0].prompt}
    assert "B is still zero" in training.bad_start(config(init_lora_weights="gaussian"), **given).message

    few = tiny.change(runs_dir=str(tmp_path), max_steps=3)
    given = {"few": few, "rows": data}
    assert "would see different rows" in training.same_step_fewer_activations(few.change(batch_size=4), **given).message
    assert "100 %" in training.same_step_fewer_activations(few.change(learning_rate=1e-4), **given).message
    own = tiny.change(max_steps=3, batch_size=4)
    assert "over your own run" in training.same_step_fewer_activations(own, **given).message
    trained = pretend(monkeypatch, steps=[{"loss": 5.0}, {"loss": 4.0}])
    assert training.same_step_fewer_activations(few.change(checkpointing=True), **given).state == "right"
    trained[few.change(checkpointing=True)] = {"steps": [{"loss": 5.0}, {"loss": 3.0}]}
    verdict = training.same_step_fewer_activations(few.change(checkpointing=True), **given)
    assert "do not compute the same step" in verdict.message


def test_03_wrong_answers_are_told_why(tiny, data, tmp_path, monkeypatch):
    weight = base_tensor(base_folder(tiny), "model.layers.0.self_attn.q_proj.weight")
    assert "rest rounds it away" in training.half_move(1e-7, weight=weight).message
    assert "smaller" in training.half_move(1e-2, weight=weight).message
    assert training.stops_at(0.03125, rate=1e-4).state == "right"
    assert "never gets as far" in training.stops_at(1, rate=1e-4).message
    assert "still moves" in training.stops_at(torch.tensor(0.01), rate=1e-4).message
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
    assert "so is 6 to 0" in comparison.wins_needed(7, losses=0).message
    assert "not even be ahead" in comparison.wins_needed(3, losses=3).message
    found = records.load_series(runs.folder / "tiny")
    last = found[-1]
    rows = replace(last, seed=9, evaluation=last.evaluation | {"fingerprint": "0"})
    assert "that was step 2" in comparison.refused(rows, records=found).message
    rate = replace(last, seed=9, settings=last.settings | {"learning_rate": 1e-9})
    assert "may differ" in comparison.refused(rate, records=found).message
    for change in (
        {"model": last.model | {"fingerprint": "0"}},
        {"decisions": last.decisions | {"precision": {"value": "fp8"}}},
    ):
        assert comparison.refused(replace(last, seed=9, **change), records=found).state == "right"


def test_05_wrong_answers_are_told_why(runs, data, tokenizer):
    given = {"examples": data.test, "tokenizer": tokenizer}
    right = max(sum(label != IGNORED for label in e.labels) for e in data.test)
    assert using.room_to_answer(right, **given).state == "right"
    assert "but not its" in using.room_to_answer(right - 1, **given).message
    assert "question as well" in using.room_to_answer(max(len(e.input_ids) for e in data.test), **given).message
    assert "would be cut" in using.room_to_answer(3, **given).message

    def load():
        return inference.load_trained(runs.settings("lora")).eval()

    prompts = [e.prompt for e in data.test[:4]]
    everything = using.padded_right(range(4), load=load, tokenizer=tokenizer, prompts=prompts, limit=8)
    assert "what stands before it" in everything.message

    def both(model, factor):
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.data *= factor

    assert "a quarter of the update" in using.scaled_adapter(both, load=load).message
    assert "1.00 of the update" in using.scaled_adapter(lambda model, factor: model, load=load).message
    assert "no adapter left" in using.scaled_adapter(lambda model, _: model.merge_and_unload(), load=load).message


def test_10_wrong_answers_are_told_why(tiny, data, tokenizer):
    suspects = {seed: case(data, tokenizer, seed) for seed in range(4)}
    answers = {}
    for seed, suspect in suspects.items():
        pairs = [{a, b} for a in FAULTS for b in FAULTS if a < b]
        found = [p for p in pairs if bugs.case_solved(p, case=suspect, tokenizer=tokenizer).state == "right"]
        assert len(found) == 1
        answers[seed] = found[0]
        assert "no row has a" in bugs.case_solved(FAULTS, case=suspect, tokenizer=tokenizer).message
        assert "there is more" in bugs.case_solved([*found[0]][:1], case=suspect, tokenizer=tokenizer).message
    assert len({frozenset(a) for a in answers.values()}) > 1, "every seed gives the same case"
    run = {"model": fresh(tiny), "rows": data.train[:30], "batch_size": 4, "accumulation": 2, "devices": 2}
    assert "on one device" in bugs.steps_of_an_epoch(4, **run).message
    assert "without accumulation and" in bugs.steps_of_an_epoch(8, **run).message
    assert bugs.steps_of_an_epoch(2, **run).state == "right"


def test_10_shows_each_symptom_and_the_guard_that_names_it(series):
    executed = nbformat.read(series.folder / "notebooks" / "10_spot_the_bug.ipynb", 4)
    scenes = re.split(r"(?=^## \d+\. )", "\n".join(
        c.source if c.cell_type == "markdown" else "\n".join(str(o.get("text") or o["data"]["text/plain"]) for o in c.outputs)
        for c in executed.cells
    ), flags=re.M)  # fmt: skip
    scenes = {int(re.match(r"## (\d+)", text)[1]): text for text in scenes[1:]}
    assert len(scenes) >= 10 and all("**Your guess?**" in text and "<summary>Hint" in text for text in scenes.values())
    caught = {1: "full trains everything", 2: "EOS in the batch", 3: "EOS supervised", 4: "fresh base",
              5: "trained weights moved", 6: "one BOS", 7: "one device", 8: "train and test are disjoint"}  # fmt: skip
    for number, name in caught.items():
        assert f"GuardError: {name}" in scenes[number], number
    assert "largest difference of the two curves: 0.0\n" in scenes[1]
    faulty, mended = scenes[2].split("GuardError")
    assert faulty.count("the limit") == 4 and "</s>  " not in faulty and "the limit" not in mended
    assert scenes[3].count("the limit") == 4
    losses = [float(x) for x in re.findall(r"^(?:test|validation) rows +([\d.]+)$", scenes[8], re.M)]
    assert losses[0] < 0.7 * losses[1] and abs(losses[2] - losses[3]) < 0.2 * losses[3]
