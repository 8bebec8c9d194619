"""Measure one GPU against several, Llama-2-7B shape with random weights: python -m tests.benchmarks.two_devices --out DIR

LoRA is replicated, full fine-tuning sharded, through helpers.engine.launch, the path of the notebook 07_multi_gpu. Every step
has the same rows on one GPU as on several: 4 x 2,048 tokens a GPU at a time, and on one GPU as many such batches for a
step as there are GPUs otherwise. Rows are exactly 2,048 tokens long, so nothing is padded. Full keeps no activations
(gradient checkpointing), on one GPU and on several, because one would not hold them.

Each run leaves DIR/<method>-<devices>.json; the table and DIR/two-devices.json are made of all that are there, so
``--methods`` and ``--counts`` can be measured one at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from helpers import records
from helpers.engine import launch
from helpers.memory import SHAPES
from helpers.settings import ROOT, Settings, settings_for

import torch

LENGTH, AT_A_TIME, WARM_UP = 2048, 4, 3


def make_model(folder: Path) -> None:
    """A random Llama-2-7B in bf16 with the tokenizer of `tiny`; run in a process of its own, so that it leaves no memory."""
    from helpers.sources import resolve
    from tests.benchmarks.speed import random_model

    tiny = resolve(settings_for("tiny")).folder
    random_model(SHAPES["Llama-2-7B"], torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / name, folder / name)


def make_rows(path: Path, number: int) -> None:
    """Rows of exactly ``LENGTH`` tokens: the tokenizer of `tiny` makes one token of each digit."""
    import random

    from helpers.models import load_tokenizer
    from helpers.sources import resolve

    tokenizer, rng = load_tokenizer(resolve(settings_for("tiny"))), random.Random(0)

    def tokens(answer: str) -> int:
        turns = [{"role": "user", "content": "00000"}, {"role": "assistant", "content": answer}]
        return len(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"])

    digits = LENGTH - tokens("0" * 100) + 100
    assert tokens("7" * digits) == LENGTH
    with path.open("w", encoding="utf-8") as handle:
        for row in range(number):
            answer = "".join(rng.choice("0123456789") for _ in range(digits))
            handle.write(json.dumps({"question": f"{row:05}", "answer": answer}) + "\n")


def measure(settings: Settings, count: int) -> dict:
    """One run in processes of its own, and what its record says of speed, memory and losses."""
    if count == 1:
        subprocess.run([sys.executable, *launch.command(settings, 1)[1:]], cwd=ROOT, check=True)
        record = records.load(settings.folder)
    else:
        record = launch.launch(settings, *launch.devices(settings))
    ends = [step["seconds"] for step in record.steps]
    step = statistics.median(b - a for a, b in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False))
    return {
        "method": settings.method, "devices": count, "device": record.device["name"], "date": record.finished,
        "tokens_per_second": settings.batch_size * settings.accumulation * LENGTH / step, "step_seconds": step,
        "ranks": record.memory["ranks"], "predicted": record.memory["predicted"], "decisions": record.decisions,
        "losses": [s["loss"] for s in record.steps], "grad_norms": [s["grad_norm"] for s in record.steps],
        "guards": record.guards, "load_seconds": record.training["load_seconds"], "environment": record.environment,
        "commit": record.commit,
    }  # fmt: skip


def table(runs: list[dict]) -> str:
    """One line a run, then the losses side by side."""
    lines = ["method  GPUs   tok/s in all  scaling   peak GB a GPU  weights  gradients  optimizer (GB a GPU)"]
    alone = {r["method"]: r for r in runs if r["devices"] == 1}
    for r in runs:
        gb = {k: max(x[k] for x in r["ranks"]) / 1e9 for k in ("peak", "parameters", "gradients", "optimizer")}
        one = alone.get(r["method"])
        scaling = f"{r['tokens_per_second'] / one['tokens_per_second']:.2f}" if one else "-"
        lines.append(f"{r['method']:6} {r['devices']:5} {r['tokens_per_second']:14,.0f} {scaling:>8} {gb['peak']:15.1f} "
                     f"{gb['parameters']:8.2f} {gb['gradients']:10.2f} {gb['optimizer']:10.2f}")  # fmt: skip
    for method, one in alone.items():
        for r in runs:
            if r["method"] == method and r["devices"] > 1:
                apart = max(abs(b / a - 1) for a, b in zip(one["losses"], r["losses"], strict=True))
                lines.append(f"{method}: losses of 1 and {r['devices']} GPUs at most {100 * apart:.3f} % apart")
                lines += [
                    f"  step {i:2}  {a:.5f}  {b:.5f}"
                    for i, (a, b) in enumerate(zip(one["losses"], r["losses"], strict=True), 1)
                ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--devices", type=int, default=2, help="GPUs of the larger run, whose steps both make")
    parser.add_argument("--counts", default="", help="which to measure, such as '1 2'; default: 1 and --devices")
    parser.add_argument("--methods", default="lora full")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--model", type=Path, default=Path("/tmp/llama2-7b-random"), help="made where it is not there")
    parser.add_argument("--make-model", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make_model:
        return make_model(given.model)
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if not (given.model / "config.json").is_file():
        again = [sys.executable, "-m", "tests.benchmarks.two_devices", "--out", str(out), "--model", str(given.model)]
        subprocess.run([*again, "--make-model"], cwd=ROOT, check=True)
    rows = out / "rows.jsonl"
    make_rows(rows, AT_A_TIME * given.devices * given.steps + 5)  # one row is kept for the test split
    for method in given.methods.split():
        for count in [int(n) for n in given.counts.split()] or [1, given.devices]:
            settings = settings_for(
                "llama2-7b", method, model=str(given.model), data=str(rows), max_length=LENGTH, train_rows=10**6,
                validation_rows=0, test_rows=1, batch_size=AT_A_TIME, accumulation=given.devices, max_steps=given.steps, save_steps=0,
                checkpointing=method == "full", runs_dir=str(out / "runs" / str(count)), devices=count,
            )  # fmt: skip
            run = measure(settings, count)
            (out / f"{method}-{count}.json").write_text(json.dumps(run), encoding="utf-8")
            shutil.rmtree(settings.folder)  # 13 GB of random weights
    runs = [json.loads((out / f"{m}-{n}.json").read_text()) for m in ("lora", "full") for n in (1, given.devices)
            if (out / f"{m}-{n}.json").is_file()]  # fmt: skip
    result = {"model": "Llama-2-7B shape, random weights", "rows": f"{LENGTH} tokens each", "runs": runs}
    (out / "two-devices.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
