"""Exercises: every one has a solution that its check accepts, usual wrong answers are told why, none stops a notebook."""

import ast
import copy
import functools
import re
import threading
from dataclasses import replace
from types import SimpleNamespace

from helpers import models, records
from helpers.device import plan
from helpers.engine.updates import base_tensor
from helpers.exercises import (
    Verdict,
    bugs,
    check,
    comparison,
    devices,
    four_bit,
    machine,
    need,
    serving,
    speed,
    training,
)
from helpers.exercises import data as rows
from helpers.exercises import inference as using
from helpers.exercises.scenes import FAULTS, case, fresh
from helpers.headless.parameters import find_notebooks
from helpers.memory import SHAPES, lora_parameters
from helpers.settings import IGNORED, ROOT, settings_for
from helpers.sources import resolve

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


def run(path, **parameters) -> tuple[list[Verdict], dict]:
    """Execute a solution in this process, as a kernel would; the verdicts that its cells end in, and its names."""
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
    return verdicts, names


@pytest.fixture(scope="module")
def solved(runs):
    """What :func:`run` gives for a solution, by its name; each is executed once."""
    folder = ROOT / "notebooks" / "solutions"
    return functools.cache(lambda name: run(folder / f"{name}.ipynb", profile="tiny", runs_dir=str(runs.folder)))


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_run_and_their_answers_are_right(path, solved):
    verdicts, _ = solved(path.stem)
    assert asked(path) and [v.state for v in verdicts] == ["right"] * len(asked(path)), verdicts


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_solve_the_exercises_of_their_notebook(path):
    assert asked(ROOT / "notebooks" / path.name) == asked(path)
    content = nbformat.read(path, 4)
    nbformat.validate(content)
    assert all(c.outputs == [] and c.execution_count is None for c in content.cells if c.cell_type == "code")
    assert [c for c in content.cells if "parameters" in c.metadata.get("tags", [])]


def test_each_notebook_has_exercises_with_hints_that_unfold():
    assert [p.name for p in find_notebooks()] == [p.name for p in SOLUTIONS]
    for path in find_notebooks():
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
    shape = plan(tiny, resolve(tiny).shape).shape

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
    weight = base_tensor(resolve(tiny).folder, "model.layers.0.self_attn.q_proj.weight")
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
        return models.load_trained(runs.settings("lora")).eval()

    prompts = [e.prompt for e in data.test[:4]]
    everything = using.padded_right(range(4), load=load, tokenizer=tokenizer, prompts=prompts, limit=8)
    assert "what stands before it" in everything.message
    one = using.padded_right(3, load=load, tokenizer=tokenizer, prompts=prompts, limit=8)
    assert "as a set" in one.message

    def both(model, factor):
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.data *= factor

    assert "a quarter of the update" in using.scaled_adapter(both, load=load).message
    assert "1.00 of the update" in using.scaled_adapter(lambda model, factor: model, load=load).message
    assert "no adapter left" in using.scaled_adapter(lambda model, _: model.merge_and_unload(), load=load).message


def test_06_wrong_answers_are_told_why(solved):
    names = solved("06_qlora")[1]
    W, update, levels = (names[name] for name in ("W", "update", "levels"))
    quantiser = {name: names[name] for name in ("quantise", "dequantise")}
    bits = {"quantise": names["quantise"], "levels": levels, "block": 32, "group": 256}
    for wrong, why in ((5, "fp32 number for each"), (4.25, "have a scale too"), (4.127, "blocks of 64"), (4, "without the"),
                       (0.532, "in bytes"), (4.5, "for each weight, each block")):  # fmt: skip
        assert why in four_bit.bits_a_weight(wrong, **bits).message
    held = names["dequantise"](names["codes"], names["scales"], levels, W.shape)
    again = names["dequantise"](*names["quantise"](held + update, levels), levels, W.shape)
    given = {"original": W, "codes": names["codes"], "scales": names["scales"], "levels": levels, "update": update}
    for wrong, why in ((W + update, "never on these weights"), (again, "fall back"), (held, "without the adapter"),
                       (W, "not the one"), (held - update, "did the adapter see"), (again.T[:8], "its shape is"),
                       (names["codes"].tolist(), "one matrix")):  # fmt: skip
        assert why in four_bit.merged_right(wrong, **given, **quantiser).message
    given = {"weight": W, "levels": levels}
    for wrong, why in ((levels, "closest to all"), (torch.linspace(-1, 1, 15), "NF4's"), (levels.flip(0), "ascend"),
                       (torch.linspace(-1, 1, 32), "4 bits can name 16")):  # fmt: skip
        assert why in four_bit.better_levels(wrong, **given, **quantiser).message
    mine = names["mine"]
    assert "zero would not stay" in four_bit.better_levels(mine[mine != 0].tolist(), **given, **quantiser).message


def test_07_wrong_answers_are_told_why(solved):
    names = solved("07_multi_gpu")[1]
    each, fewest, card = names["each"], names["fewest"], names["model_70b"] | {"devices": 8}
    for wrong, why in ((8 * each, "together"), (each / 8, "weights alone"), (each * 3 / 4, "masters"), (each * 1e9, "not for"),
                       (each / 2, "2 + 2 + 4 + 8")):  # fmt: skip
        assert why in devices.fewest_devices(wrong, fewest, **card).message
    alone = -(-each * 8 * 1e9 // card["memory"])
    for wrong, why in (
        (alone, "not divide"),
        (fewest - 1, "each needs"),
        (fewest + 1, "one device fewer"),
        (1.5, "no number"),
    ):
        assert why in devices.fewest_devices(each, wrong, **card).message
    assert devices.fewest_devices(140, fewest, **card).state == "right"  # 70 billion, as the name says

    P, n = 2, (names["n0"], names["n1"])
    means = {"parts": (names["eight"][:4], names["eight"][4:]), "load": names["fresh"], "gradient": names["gradient"]}
    for wrong, why in (((1, 1), "mean of means"), ([k / sum(n) for k in n], "divides by 2"), (n, "a mean times"),
                       ([sum(n) / k / P for k in n], "upside down"), ((2, 0), "sums over tokens"), ([1], "2 factors")):  # fmt: skip
        assert why in devices.factors_of_means(wrong, **means).message

    cut = {"gradient": names["matrix"], "limit": 1.0}
    sends, clips = names["sends"], names["clips"]

    def own(shard, numbers, limit):
        return shard * min(1.0, limit / shard.norm())

    for wrong, why in (((lambda shard: shard, clips), "one is enough"), ((sends, own), "own norm"),
                       ((lambda shard: shard.norm(), lambda s, n, limit: s * min(1.0, limit / sum(n))), "add up"),
                       ((sends, lambda s, n, limit: s * limit / sum(n) ** 0.5), "below the limit"),
                       ((sends, lambda s, *_: s), "does not clip"), ((sends, lambda *_: None), "returns nothing")):  # fmt: skip
        assert why in devices.clipped_in_parts(*wrong, **cut).message


def test_08_wrong_answers_are_told_why(solved, data, tokenizer):
    given = {"references": [e.reference for e in data.test[:3]], "limit": 24}

    def text(response):
        return response.choices[0].message.content

    for wrong, why in (
        (text, "an answer came through"),
        (lambda r: text(r) if r.choices[0].finish_reason == "stop" else "", "should return None"),
        (lambda r: text(r) if r.usage.completion_tokens < 24 else None, "exactly 24 tokens"),
        (lambda r: text(r) if text(r) in given["references"] else None, "looks complete"),
        (lambda r: None, "a whole answer"),
    ):
        assert why in serving.whole_answers(wrong, **given).message

    names = solved("08_serve")[1]
    first, said, talk, grown = (names[name] for name in ("question", "said", "messages", "grows_by"))
    second = {"first": first, "said": said, "tokenizer": tokenizer}
    assert "keeps nothing" in serving.second_turn(talk[-1:], grown, **second).message
    assert "the roles are" in serving.second_turn([*first, talk[-1]], grown, **second).message
    other = [*first, {"role": "assistant", "content": "Something else."}, talk[-1]]
    assert "not what the server answered" in serving.second_turn(other, grown, **second).message
    said, asked = (len(tokenizer(m["content"], add_special_tokens=False)["input_ids"]) for m in talk[-2:])
    for wrong, why in ((names["tokens"](talk), "how much it grew"), (said + asked, "who speaks"), (said, "first answer;"),
                       (asked, "second question;"), (grown + 7, "count")):  # fmt: skip
        assert why in serving.second_turn(talk, wrong, **second).message


def test_08_a_limit_for_clients_has_to_hold_and_to_let_go(monkeypatch):
    monkeypatch.setattr(serving, "STUCK", 1)

    def each_time(ask, at_once):
        def asks(messages):
            with threading.Semaphore(at_once):
                return ask(messages)

        return asks

    def one(ask, at_once, places=None, give_back=True):
        places = places or threading.Lock()

        def asks(messages):
            places.acquire()
            answer = ask(messages)
            if give_back:
                places.release()
            return answer

        return asks

    def twice(ask, at_once):
        return one(ask, at_once, threading.Semaphore(at_once))

    def never(ask, at_once):
        return one(ask, at_once, threading.Semaphore(at_once), give_back=False)

    for wrong, why in ((lambda ask, at_once: ask, "anew for each request"), (each_time, "anew for each request"),
                       (one, "only 1 was on its way"), (twice, "nobody gets in any more"), (never, "some still wait"),
                       (lambda ask, at_once: None, "should return a function"),
                       (lambda ask, at_once: lambda: ask(""), "TypeError")):  # fmt: skip
        assert why in serving.limited_clients(wrong).message


def test_09_wrong_answers_are_told_why():
    shape = SHAPES["SmolLM2-135M"]
    best = {"speed": 1e12, "shape": shape}
    lora = 1e12 / (4 * shape.block_weights)
    right = lora * 4 / 6
    for wrong, why in ((lora, "LoRA's"), (2 * lora, "forward pass alone"), (lora / 2, "checkpointing here"), (7, "Count 2N"),
                       (lora * 6 / 4, "upside down")):  # fmt: skip
        verdict = speed.ceilings(wrong, right, **best).message
        assert verdict.startswith("full: ") and why in verdict
    for wrong, why in ((lora, "second time"), (lora / 2, "only the forward pass")):
        assert why in speed.ceilings(right, wrong, **best).message

    def rung(name, tokens, precision="bf16"):
        return {"name": name, "tokens_per_second": tokens, "chosen": {"precision": precision}}

    ladder = {"found": [rung("start", 100, "fp32"), rung("bf16", 300), rung("more", 500), rung("most", 510)],
              "ceiling": {"fp32": 200, "bf16": 1000}}  # fmt: skip
    assert speed.best_levers("bf16", "more", **ladder).state == "right"
    for faster, closer, why in (("most", "more", "stands highest"), ("more", "more", "below it"), ("start", "more", "starts there"),
                                ("fast", "more", "no rung is called"), ("bf16", "bf16", "-20.0 points"),
                                ("bf16", "most", "+1.0 points")):  # fmt: skip
        assert why in speed.best_levers(faster, closer, **ladder).message

    curve = {
        "known": {1000: 100.0, 2000: 190.0, 4000: 199.0, 8000: 200.0},
        "own": lambda: {8: 1.0, 16: 5.0},
        "share": 0.95,
    }

    def ordered(curve):
        return next(n for n, s in curve.items() if s >= 0.95 * max(curve.values()))

    def last(curve):
        return min(n for n, s in curve.items() if s >= 0.95 * list(curve.values())[-1])

    for wrong, why in ((lambda c: max(c, key=c.get), "nearly as fast"), (last, "falls at its end"), (ordered, "another order"),
                       (lambda c: 4000, "the fewest tokens a step"), (lambda c: None, "you give None"),
                       (min, "95 % of the best")):  # fmt: skip
        assert why in speed.knee(wrong, **curve).message
    assert (
        "the knee is at 16"
        in speed.knee(lambda c: min(n for n in c if c[n] >= 0.95 * max(c.values())), **curve).message
    )


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
              5: "trained weights changed", 6: "one BOS", 7: "one device", 8: "train and test are disjoint"}  # fmt: skip
    for number, name in caught.items():
        assert f"GuardError: {name}" in scenes[number], number
    assert "largest difference of the two curves: 0.0\n" in scenes[1]
    faulty, mended = scenes[2].split("GuardError")
    assert faulty.count("the limit") == 4 and "</s>  " not in faulty and "the limit" not in mended
    assert scenes[3].count("the limit") == 4
    losses = [float(x) for x in re.findall(r"^(?:test|validation) rows +([\d.]+)$", scenes[8], re.M)]
    assert losses[0] < 0.7 * losses[1] and abs(losses[2] - losses[3]) < 0.2 * losses[3]
