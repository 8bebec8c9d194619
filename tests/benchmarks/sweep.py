"""Rate x rank x rows: python -m tests.benchmarks.sweep --out runs/sweep --jobs 1

Trains the profile with LoRA of several ranks, with LoRA on attention alone (as many parameters as rank 16 everywhere) and
with full fine-tuning, at several rates, with few and many rows, three seeds each. Runs on a GPU, several or a CPU; with
``--jobs`` several at a time, so no speed is kept. Each run is judged on validation rows, never on the test rows, and is
one JSON file in ``--out``; a run whose file exists is not done again, so the command resumes where it was stopped. A run
that diverges is kept with the reason. At the end everything goes into one table, ``<out>/sweep-<profile>.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import math
import multiprocessing
import os
import shutil
from itertools import product
from pathlib import Path

ATTENTION = "q_proj,k_proj,v_proj,o_proj"
LORA, FULL = (3e-4, 1e-3, 3e-3, 1e-2), (3e-5, 1e-4, 3e-4, 1e-3)
VALIDATION_ROWS = 200  # about 144 questions: more than in the profile, since they decide


def grid(seeds: list[int], rows: list[int]) -> list[dict]:
    """All runs as changes of the profile, the profile's own number of rows before the others."""
    cells = [{"method": "lora", "rank": rank, "learning_rate": rate} for rank, rate in product((1, 4, 16, 64), LORA)]
    cells += [{"method": "full", "learning_rate": rate} for rate in FULL]
    cells += [{"method": "lora", "rank": 42, "targets": ATTENTION, "learning_rate": rate} for rate in LORA[:3]]
    few = [c for c in cells if c.get("rank") in (None, 1, 16, 64) and c["learning_rate"] in (1e-4, 3e-4, 1e-3, 3e-3)]
    few = [c for c in few if c["learning_rate"] in (LORA[1:3] if c["method"] == "lora" else FULL[1:3])]
    runs = [{"method": "base", "seed": 0, "train_rows": rows[0]}]
    for n in rows:
        runs += [c | {"seed": seed, "train_rows": n} for seed in seeds for c in (cells if n == rows[0] else few)]
    return runs


def name_of(run: dict) -> str:
    rank, rate = (
        f"{letter}{run[name]:g}" if name in run else "" for letter, name in (("r", "rank"), ("", "learning_rate"))
    )
    attention = "attention" if "targets" in run else ""
    return "-".join(filter(None, [run["method"], rank, attention, rate, f"n{run['train_rows']}", f"s{run['seed']}"]))


def begin(devices: list[str], threads: int) -> None:
    """Give this worker one device and its share of the cores, before torch is imported."""
    number = multiprocessing.current_process()._identity[0] - 1
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]


def one(work: tuple[str, Path, dict]) -> None:
    """Train and judge one run, unless its file exists."""
    profile, out, run = work
    path = out / f"{name_of(run)}.json"
    if path.exists():
        return
    import helpers  # noqa: F401 - silences notices of the libraries
    from helpers import evaluation
    from helpers.data import prepare
    from helpers.guards import GuardError
    from helpers.models import load_tokenizer
    from helpers.settings import settings_for
    from helpers.sources import answer_of, resolve
    from helpers.training import TrainingError, measure_base, train

    evaluation.PROSE_REPLIES = 0  # its loss is enough here
    changes = {k: v for k, v in run.items() if k != "method"}
    method = run["method"] if run["method"] != "base" else "lora"
    settings = settings_for(
        profile, method, runs_dir=str(out.resolve() / "scratch" / path.stem), validation_rows=VALIDATION_ROWS, **changes
    )
    settings = settings.change(max_steps=max(settings.max_steps, settings.train_rows // settings.batch_size))
    data = prepare(settings, load_tokenizer(resolve(settings)))
    is_scored = [answer_of(e.reference) is not None for e in data.validation]
    questions = [e for e, scored in zip(data.validation, is_scored, strict=True) if scored]
    prose = [e for e, scored in zip(data.validation, is_scored, strict=True) if not scored]
    judged = dataclasses.replace(data, test=questions, harder=[], prose=prose)
    row = run | {
        "rank": settings.rank,
        "targets": settings.targets,
        "alpha": settings.alpha,
        "max_steps": settings.max_steps,
    }
    if method == "full" or run["method"] == "base":
        row |= {"rank": None, "targets": None, "alpha": None}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # progress bars of several runs at a time
            made = measure_base(settings, judged) if run["method"] == "base" else train(settings, data, resume=False)
        record = made.record
        found = record.evaluation or evaluation.evaluate(made.model, made.tokenizer, judged, settings)
        losses = {"questions": found["loss"]} | {k: found[k]["loss"] for k in ("prose", "general", "unrelated")}
        right = found["exact_match"]
        row |= {"stopped": None, "right": sum(right), "questions": len(right), "losses": losses}
        row |= {
            "validation_loss": record.training.get("validation_loss"),
            "trainable": record.training.get("trainable"),
        }
        row |= {"general_losses": found["general"]["losses"], "device": record.device.get("name")}
        row |= {"commit": record.commit, "environment": record.environment, "date": record.started}
    except (TrainingError, GuardError) as fault:
        row["stopped"] = str(fault)[:300]
    except Exception as fault:  # of the machine, not of the run: no file, so that it is tried again
        print(path.stem, "failed:", str(fault)[:300], flush=True)
        return
    shutil.rmtree(settings.series_folder.parent, ignore_errors=True)
    path.write_text(json.dumps(row), encoding="utf-8")
    print(path.stem, row["stopped"] or f"{row['right']} of {row['questions']} right, {row['losses']}", flush=True)


def diverged(row: dict, base: dict) -> bool:
    """Whether a run was stopped, or is worse than the untouched model on the questions or the conversations."""
    return row["stopped"] is not None or any(row["losses"][part] > base[part] for part in ("questions", "prose"))


def collect(profile: str, out: Path) -> Path:
    """One table of all runs found, and how many of them diverged; date, commit and environment are those of the newest."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*-n*-s*.json"))]
    about = max((row for row in rows if row["stopped"] is None), key=lambda row: row["date"], default={})
    base = next((row["losses"] for row in rows if row["method"] == "base"), {"questions": math.inf, "prose": math.inf})
    for row in rows:
        row["diverged"] = diverged(row, base)
        if row["stopped"] is None:
            row["losses"] = {name: round(loss, 4) for name, loss in row["losses"].items()}
    shared = {name: about.get(name) for name in ("device", "date", "commit", "environment")}
    shared["device"] = " and ".join(sorted({row["device"] for row in rows if row.get("device")}))
    kept = [{k: v for k, v in row.items() if k not in (*shared, "general_losses")} for row in rows]
    count = sum(row["diverged"] for row in rows)
    table = shared | {"profile": profile, "validation_rows": VALIDATION_ROWS, "diverged": count, "runs": kept}
    path = out / f"sweep-{profile}.json"
    path.write_text(json.dumps(table, indent=0), encoding="utf-8")
    print(f"{len(rows)} runs, {count} of them diverged: {path}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    parser.add_argument("--profile", default="small")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--devices", default="", help="CUDA or ROCm devices to share among the jobs, such as 0,1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default="960,240,2400", help="training rows; the first number gets the whole grid")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    seeds, rows = ([int(n) for n in text.split(",")] for text in (given.seeds, given.rows))
    work = [(given.profile, given.out, run) for run in grid(seeds, rows)]
    share = (given.devices.split(",") if given.devices else [], max(len(os.sched_getaffinity(0)) // given.jobs, 1))
    with multiprocessing.get_context("spawn").Pool(given.jobs, begin, share) as pool:
        for _ in pool.imap_unordered(one, work):
            pass
    collect(given.profile, given.out)
    if missing := [name_of(run) for _, _, run in work if not (given.out / f"{name_of(run)}.json").exists()]:
        raise SystemExit(
            f"{len(missing)} of {len(work)} runs failed, such as {missing[0]}; the same command tries them again"
        )


if __name__ == "__main__":
    main()
