"""Make the reference records that helpers/reference ships: python -m tests.benchmarks.reference_runs PART --out DIR

Parts:
    seeds     lora, full and qlora with three seeds each and the base: scores, speed and memory; the base and the first seed
              run alone, the others --jobs at a time and then without speeds; a run whose file exists is not repeated
    memory7b  predicted against measured memory, Llama-2-7B shape with random weights, on a GPU
    shape7b   lora and full on the same shape through the notebooks' own path, 1,000 synthetic rows of log-normal
              length: speed and memory only, the answers of random weights mean nothing

Each writes records or a table as JSON into DIR; nothing is committed by itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import torch


def one(profile: str, out: Path, name: str, alone: bool = True, **changes) -> None:
    """One run in this process; its record as ``<out>/<name>.json``. Weights are thrown away.

    Args:
        alone: whether nothing else runs on the machine; otherwise speeds are left out of the record.
    """
    from helpers import evaluation
    from helpers.data import prepare
    from helpers.evaluation import evaluate
    from helpers.models import load_tokenizer
    from helpers.settings import settings_for
    from helpers.sources import resolve
    from helpers.training import measure_base, train

    evaluation.PROSE_REPLIES = 20  # shown with the issue, unselected
    method = changes.pop("method")
    settings = settings_for(
        profile, "lora" if method == "base" else method, runs_dir=str(out / "scratch" / name), **changes
    )
    data = prepare(settings, load_tokenizer(resolve(settings)))
    if method == "base":
        run = measure_base(settings, data)
    else:
        run = train(settings, data)
        run.record.evaluation = evaluate(run.model, run.tokenizer, data, settings)
    record = run.record
    record.settings["runs_dir"] = "runs"
    if settings.model.startswith("/"):
        record.settings |= {"model": "random weights", "data": "synthetic rows"}
        record.model["source"], record.data["source"] = "random weights", "synthetic rows"
        record.note = "random weights: speed and memory only"
    if not alone:
        record.note = "run beside others, so no speed"
        record.training |= {"tokens_per_second": None, "train_seconds": None, "energy": None}
    record.memory["timeline"] = record.memory.get("timeline", [])[::2]
    record.evaluation["replies"] = record.evaluation["replies"][:6]
    saved = record.save(run.folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(json.loads(saved.read_text())), encoding="utf-8")
    right = record.evaluation["exact_match"] or []
    print(name, "loss", round(record.evaluation["loss"], 4), "right", sum(right), "of", len(right), "larger",
          sum(record.evaluation["harder"] or []), "tok/s", record.training.get("tokens_per_second"),
          "peak GB", record.memory.get("peak", 0) / 1e9, flush=True)  # fmt: skip


def spawn(profile: str, out: Path, runs: list[tuple[str, dict]], jobs: int) -> None:
    """Each run that has no record yet in a process of its own, so that peaks and memory do not mix."""
    waiting, running = [(name, changes) for name, changes in runs if not (out / f"{name}.json").exists()], []
    while waiting or running:
        running = [process for process in running if process.poll() is None]
        while waiting and len(running) < jobs:
            name, changes = waiting.pop(0)
            running.append(subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.reference_runs", "one", "--profile", profile, "--out", str(out),
                 "--run", json.dumps({"name": name, "alone": jobs == 1, **changes})],
                stderr=open(out / f"{name}.log", "w"),  # noqa: SIM115
            ))  # fmt: skip
        time.sleep(1)


def _case(method: str, batch: int, length: int, targets: str = "q_proj,v_proj", rank: int = 8, **others) -> dict:
    return {"method": method, "batch": batch, "length": length, "targets": targets, "rank": rank, "precision": "bf16",
            "attention": "varlen", "checkpointing": False, "dropout": 0.0, "fused": False, **others}  # fmt: skip


MEMORY_CASES = (
    _case("lora", 4, 512),
    _case("lora", 4, 512, attention="sdpa"),
    _case("lora", 4, 1024, checkpointing=True),
    _case("lora", 1, 1024, attention="eager"),
    _case("lora", 2, 512, precision="fp32", attention="sdpa"),
    _case("lora", 8, 1024, rank=64),
    _case("lora", 4, 512, "all-linear"),
    _case("lora", 2, 1024, "all-linear", 64),
    _case("lora", 8, 512, "all-linear", 32, fused=True),
    _case("lora", 4, 512, "all-linear", 16, dropout=0.1),
    _case("lora", 2, 512, "all-linear", precision="fp32", attention="sdpa"),
    _case("lora", 4, 768, "gate_proj,up_proj,down_proj", 16),
    _case("lora", 4, 1024, fused=True),
    _case("qlora", 4, 512),
    _case("qlora", 2, 1024, "all-linear", 64),
    _case("qlora", 4, 1024, "all-linear", 16, checkpointing=True, fused=True),
    _case("full", 1, 512, checkpointing=True),
    _case("full", 4, 512, precision="fp32", attention="sdpa", checkpointing=True),
    _case("full", 1, 256),
    _case("full", 2, 1024),
    _case("full", 8, 512, fused=True),
)


def memory_case(case: dict) -> dict:
    """Three steps of one setting through the trainer of helpers.engine.trainer: measured parts beside predicted ones."""
    from helpers.batches import training_order
    from helpers.device import Plan, World, decide, describe
    from helpers.engine.trainer import Steps, collator, fast, make_trainer
    from helpers.memory import SHAPES, predict
    from helpers.models import load_tokenizer
    from helpers.settings import settings_for
    from helpers.sources import quiet, resolve
    from tests.benchmarks.speed import data_of, model_for

    shape = SHAPES["Llama-2-7B"]
    kept = ("precision", "attention", "checkpointing", "dropout", "rank", "targets")
    settings = settings_for("llama2-7b", case["method"], batch_size=case["batch"], max_steps=3, save_steps=0,
                            kernels="liger" if case["fused"] else "torch", **{k: case[k] for k in kept})  # fmt: skip
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = model_for(settings, shape)
    gc.collect()
    torch.cuda.empty_cache()
    weights = torch.cuda.memory_allocated() - before
    predicted = predict(shape, **case)
    ours = Plan(describe(), decide(settings, describe(), 0), predicted, World(), False)
    order = training_order(data_of([case["length"]] * 3 * case["batch"]), settings)
    tokenizer = load_tokenizer(resolve(settings.change(model="tiny")))
    batches = collator(settings, ours, tokenizer, order)
    with quiet(), fast(model, ours):
        trainer = make_trainer(model, settings, ours, order, tokenizer, batches, Steps())
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
    peak = torch.cuda.max_memory_allocated() - before
    trainer.optimizer.zero_grad(set_to_none=True)
    states = torch.cuda.memory_allocated() - before - weights
    del trainer, model
    gc.collect()
    parts = predicted.to_dict()
    stays = parts["weights"] + parts["adapter"] + parts["masters"] + parts["optimizer"]
    return case | {
        "weights_measured": weights, "weights_predicted": parts["weights"] + parts["adapter"],
        "optimizer_measured": states, "optimizer_predicted": parts["optimizer"] + parts["masters"],
        "step_measured": peak - weights - states, "step_predicted": parts["total"] - stays,
        "peak_measured": peak, "peak_predicted": parts["total"], "error": parts["total"] / peak - 1, "parts": parts,
    }  # fmt: skip


def memory7b(out: Path) -> None:
    from helpers.records import environment, git_state, now

    rows = []
    for case in MEMORY_CASES:
        try:
            row = memory_case(case)
            print(
                json.dumps(
                    {
                        k: round(v / 1e9, 2) if isinstance(v, int) and abs(v) > 1e6 else v
                        for k, v in row.items()
                        if k != "parts"
                    }
                ),
                flush=True,
            )
        except RuntimeError as error:
            row = case | {"failed": str(error)[:300]}
            print(json.dumps(row), flush=True)
        rows.append(row)
        gc.collect()
        torch.cuda.empty_cache()
    result = {"device": torch.cuda.get_device_name(0), "date": now(), "commit": git_state(Path.cwd())[0],
              "environment": environment(), "model": "Llama-2-7B shape, random weights", "cases": rows}  # fmt: skip
    (out / "memory-7b.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def shape7b(out: Path, steps: int = 40) -> None:
    """A folder with a random Llama-2-7B and a JSONL file of ragged rows; then one run of each method on them."""
    import random
    import shutil

    from helpers.memory import SHAPES
    from helpers.settings import settings_for
    from helpers.sources import resolve
    from tests.benchmarks.speed import random_model

    folder, rows, rng = Path("/tmp/llama2-7b-random"), Path("/tmp/ragged.jsonl"), random.Random(0)
    tiny = resolve(settings_for("tiny")).folder
    random_model(SHAPES["Llama-2-7B"], torch.bfloat16).save_pretrained(folder)
    torch.cuda.empty_cache()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / name, folder / name)
    with rows.open("w", encoding="utf-8") as handle:
        for number in range(1000):
            length = min(max(int(rng.lognormvariate(5.7, 0.75)), 24), 980) - 16  # one digit, one token
            text = "".join(rng.choice("0123456789") for _ in range(length))
            handle.write(json.dumps({"question": f"{number}", "answer": text}) + "\n")
    changes = {"model": str(folder), "data": str(rows), "max_steps": steps, "max_new_tokens": 16}
    for method in ("lora", "full"):
        text = json.dumps({"name": f"{method}-s0", "method": method, **changes})
        subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.benchmarks.reference_runs", "one", "--profile",
                        "llama2-7b", "--out", str(out), "--run", text], check=False)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("seeds", "memory7b", "shape7b", "one"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", default="small")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--untimed", action="store_true", help="also the first runs --jobs at a time")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.part == "one":
        one(given.profile, given.out, **json.loads(given.run))
    elif given.part == "memory7b":
        memory7b(given.out)
    elif given.part == "shape7b":
        shape7b(given.out)
    else:
        first, *others = map(int, given.seeds.split(","))
        runs = {
            n: [(f"{m}-s{n}", {"method": m, "seed": n}) for m in ("lora", "full", "qlora")] for n in (first, *others)
        }
        timed, rest = [("base-s0", {"method": "base"}), *runs[first]], [run for n in others for run in runs[n]]
        if given.untimed:
            timed, rest = [], timed + rest
        spawn(given.profile, given.out, timed, 1)
        spawn(given.profile, given.out, rest, given.jobs)


if __name__ == "__main__":
    main()
