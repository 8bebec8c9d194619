"""10: each case has one answer, and each scene shows its symptom and the guard that names it."""

import re

from helpers.exercises import scenes as bugs
from helpers.exercises.scenes import FAULTS, case, fresh

import nbformat


def test_10_wrong_answers_are_told_why(tiny, data, tokenizer):
    suspects = {seed: case(data, tokenizer, seed) for seed in range(4)}
    answers = {}
    for seed, suspect in suspects.items():
        pairs = [{a, b} for a in FAULTS for b in FAULTS if a < b]
        found = [p for p in pairs if bugs.case_solved(p, case=suspect, tokenizer=tokenizer).state == "right"]
        assert len(found) == 1
        answers[seed] = found[0]
        assert "no row has a" in bugs.case_solved(FAULTS, case=suspect, tokenizer=tokenizer).message
        assert "there is more" in bugs.case_solved({min(found[0])}, case=suspect, tokenizer=tokenizer).message
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
    assert len(scenes) >= 11 and all("**Your guess?**" in text and "<summary>Hint" in text for text in scenes.values())
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
    said = dict(re.findall(r"^(here|in llama.cpp): +(.+)$", scenes[11].split("ExportError")[0], re.M))
    mended = re.findall(r"^in llama.cpp: +(.+)$", scenes[11].split("ExportError")[1], re.M)
    assert "they differ: '<|im' instead of '<s>" in scenes[11] and "tokens, all the same" in scenes[11]
    assert mended == [said["here"]] != [said["in llama.cpp"]]
