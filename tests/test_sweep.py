"""The command that sweeps rate, rank and rows, on the tiny model."""

import json

from helpers import evaluation
from tests.benchmarks import sweep


def test_each_run_is_one_file_and_all_make_one_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "PROSE_REPLIES", evaluation.PROSE_REPLIES)  # the sweep asks for none
    monkeypatch.setattr(sweep, "VALIDATION_ROWS", 20)
    base, *runs = sweep.grid([0], [60])
    chosen = [base, next(run for run in runs if run["method"] == "full"), next(run for run in runs if "targets" in run)]
    chosen.append({"method": "full", "learning_rate": 0.9, "seed": 0, "train_rows": 60})  # it diverges
    for run in chosen:
        sweep.one(("tiny", tmp_path, run | {"max_steps": 8}))
    assert "failed" not in capsys.readouterr().out
    table = json.loads(sweep.collect("tiny", tmp_path).read_text(encoding="utf-8"))
    assert len(table["runs"]) == len(chosen)
    for row in table["runs"]:
        if row["stopped"] is None:
            assert 0 <= row["right"] <= row["questions"]
            assert (
                set(row["losses"]) == {"questions", "prose", "general", "unrelated"} and min(row["losses"].values()) > 0
            )
    assert [row["learning_rate"] for row in table["runs"] if row["diverged"]] == [0.9] and table["diverged"] == 1
