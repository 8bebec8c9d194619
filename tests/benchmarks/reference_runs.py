"""Make the reference records that helpers/reference ships: python -m tests.benchmarks.reference_runs PART --out DIR

Parts:
    sweep     learning rates of both methods and the ranks and variants of LoRA, scored on the validation rows
              (never on the test rows); --jobs runs at a time, so their speeds mean nothing and are set to null
    seeds     lora and full with three seeds each and the base, one at a time: scores, speed and memory
    memory7b  predicted against measured memory, Llama-2-7B shape with random weights, on a GPU
    shape7b   lora and full on the same shape through the notebooks' own path, 1,000 synthetic rows of log-normal
              length: speed and memory only, the answers of random weights mean nothing

Each writes records or a table as JSON into DIR; nothing is committed by itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import subprocess
import sys
from pathlib import Path

import torch

SWEEP = {"lora": (3e-4, 7e-4, 1e-3, 2e-3, 4e-3), "full": (3e-5, 7e-5, 1e-4, 2e-4, 4e-4)}
VARIANTS = (
    {"method": "lora", "rank": 1, "alpha": 2},
    {"method": "lora", "rank": 4, "alpha": 8},
    {"method": "lora", "rank": 64, "alpha": 128},
    {"method": "dora"},
    {"method": "rslora"},
    {"method": "adalora"},
)


def one(profile: str, out: Path, name: str, validation: bool, **changes) -> None:
    """One run in this process; its record as ``<out>/<name>.json``. Weights are thrown away."""
    from helpers.data import prepare
    from helpers.evaluation import evaluate
    from helpers.models import load_tokenizer
    from helpers.settings import settings_for
    from helpers.training import measure_base, train

    method = changes.pop("method")
    settings = settings_for(
        profile, "lora" if method == "base" else method, runs_dir=str(out / "scratch" / name), **changes
    )
    data = prepare(settings, load_tokenizer(settings))
    if method == "base":
        run = measure_base(settings, data)
    else:
        run = train(settings, data)
        judged = dataclasses.replace(data, test=data.validation, harder=[]) if validation else data
        run.record.evaluation = evaluate(run.model, run.tokenizer, judged, settings)
    record = run.record
    record.settings["runs_dir"] = "runs"
    if settings.model.startswith("/"):
        record.settings |= {"model": "random weights", "data": "synthetic rows"}
        record.model["source"], record.data["source"] = "random weights", "synthetic rows"
        record.note = "random weights: speed and memory only"
    if validation:
        record.note = "evaluated on the validation rows; run beside others, so no speed"
        record.training |= {"tokens_per_second": None, "train_seconds": None}
        record.steps, record.memory["timeline"], record.update = record.steps[::4], [], []
    else:
        record.memory["timeline"] = record.memory.get("timeline", [])[::2]
    record.evaluation["replies"] = record.evaluation["replies"][:6]
    saved = record.save(run.folder)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(json.loads(saved.read_text())), encoding="utf-8")
    right = record.evaluation["exact_match"] or []
    print(name, "loss", round(record.evaluation["loss"], 4), "right", sum(right), "of", len(right), "new phrasing",
          sum(record.evaluation["harder"] or []), "tok/s", record.training.get("tokens_per_second"),
          "peak GB", record.memory.get("peak", 0) / 1e9, flush=True)  # fmt: skip


def spawn(profile: str, out: Path, runs: list[tuple[str, bool, dict]], jobs: int) -> None:
    """Each run in a process of its own, so that peaks and memory do not mix."""
    waiting, running = list(runs), []
    while waiting or running:
        while waiting and len(running) < jobs:
            name, validation, changes = waiting.pop(0)
            running.append(subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.reference_runs", "one", "--profile", profile, "--out", str(out),
                 "--run", json.dumps({"name": name, "validation": validation, **changes})],
                stderr=open(out / f"{name}.log", "w"),  # noqa: SIM115
            ))  # fmt: skip
        running.pop(0).wait()


def best_rates(out: Path) -> dict[str, float]:
    """For each method the rate with the most right validation answers, then the lowest validation loss."""
    best: dict[str, tuple] = {}
    for path in sorted(out.glob("rate-*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        right, loss = sum(record["evaluation"]["exact_match"]), record["evaluation"]["loss"]
        found = (-right, loss, record["settings"]["learning_rate"])
        best[record["method"]] = min(best.get(record["method"], found), found)
    return {method: found[-1] for method, found in best.items()}


MEMORY_CASES = (
    {"method": "lora", "targets": "q_proj,v_proj", "rank": 8, "batch": 4, "length": 512},
    {"method": "lora", "targets": "q_proj,v_proj", "rank": 8, "batch": 4, "length": 1024},
    {"method": "lora", "targets": "q_proj,v_proj", "rank": 8, "batch": 4, "length": 1024, "checkpointing": True},
    {"method": "lora", "targets": "q_proj,v_proj", "rank": 8, "batch": 2, "length": 512, "precision": "fp32"},
    {"method": "lora", "targets": "q_proj,v_proj", "rank": 8, "batch": 1, "length": 1024, "attention": "eager"},
    {"method": "lora", "targets": "all-linear", "rank": 8, "batch": 4, "length": 512},
    {"method": "lora", "targets": "all-linear", "rank": 64, "batch": 2, "length": 1024},
    {"method": "lora", "targets": "all-linear", "rank": 16, "batch": 4, "length": 512, "dropout": 0.1},
    {"method": "qlora", "targets": "q_proj,v_proj", "rank": 8, "batch": 4, "length": 512},
    {"method": "qlora", "targets": "all-linear", "rank": 16, "batch": 4, "length": 1024, "checkpointing": True},
    {"method": "full", "batch": 1, "length": 512, "checkpointing": True},
    {"method": "full", "batch": 4, "length": 512, "checkpointing": True, "precision": "fp32"},
    {"method": "full", "batch": 1, "length": 256},
    {"method": "full", "batch": 4, "length": 1024},
    {"method": "lora", "targets": "q_proj,v_proj", "rank": 64, "batch": 8, "length": 1024},
    {"method": "lora", "targets": "all-linear", "rank": 32, "batch": 8, "length": 512},
    {"method": "lora", "targets": "all-linear", "rank": 8, "batch": 2, "length": 512, "precision": "fp32"},
    {"method": "lora", "targets": "gate_proj,up_proj,down_proj", "rank": 16, "batch": 4, "length": 768},
    {"method": "qlora", "targets": "all-linear", "rank": 64, "batch": 2, "length": 1024},
)


def random_7b(dtype: torch.dtype, attention: str, four_bit: bool):
    """A Llama-2-7B with random weights on the GPU; in 4 bits its blocks are NF4 with double quantisation."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                         vocab_size=32000, max_position_embeddings=4096, attn_implementation=attention)  # fmt: skip
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if four_bit:
        import bitsandbytes as bnb

        for block in model.model.layers:
            for module in (block.self_attn, block.mlp):
                for name, old in list(module.named_children()):
                    if isinstance(old, torch.nn.Linear):
                        new = bnb.nn.Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=dtype,
                                                quant_type="nf4", compress_statistics=True, device="meta")  # fmt: skip
                        new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4",
                                                       compress_statistics=True).to("cuda")  # fmt: skip
                        setattr(module, name, new)
        model.is_loaded_in_4bit = True
    return model


def memory_case(case: dict) -> dict:
    """Three steps of one setting through the trainer of helpers.training: measured parts beside predicted ones."""
    from helpers.device import describe, quiet
    from helpers.memory import Shape, predict
    from helpers.models import Plan, adapter_config, load_tokenizer
    from helpers.settings import settings_for
    from helpers.training import Trainer, _arguments

    from datasets import Dataset
    from peft import get_peft_model

    case = {"precision": "bf16", "attention": "sdpa", "checkpointing": False, "dropout": 0.0, "rank": 8,
            "targets": "q_proj,v_proj", **case}  # fmt: skip
    full = case["method"] == "full"
    settings = settings_for(
        "llama2-7b", case["method"], batch_size=case["batch"], rank=case["rank"], targets=case["targets"],
        dropout=case["dropout"], max_steps=3,
    )  # fmt: skip
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    dtype = torch.float32 if full or case["precision"] == "fp32" else torch.bfloat16
    model = random_7b(dtype, case["attention"], case["method"] == "qlora")
    if not full:
        model = get_peft_model(model, adapter_config(settings))
    gc.collect()
    torch.cuda.empty_cache()
    weights = torch.cuda.memory_allocated() - before
    shape = Shape.of(model.config)
    predicted = predict(shape, **case)
    decisions = {
        k: {"value": case[k], "why": "set by the benchmark"} for k in ("precision", "attention", "checkpointing")
    }
    ids = torch.randint(3, 32000, (3 * case["batch"], case["length"])).tolist()
    tokenizer = load_tokenizer(settings.change(model="tiny"))
    with quiet():
        trainer = Trainer(
            model=model, args=_arguments(settings, Path("/tmp/memory7b"), Plan(describe(), shape, decisions, predicted)),
            train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}), processing_class=tokenizer,
        )  # fmt: skip
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
    peak = torch.cuda.max_memory_allocated() - before
    trainer.optimizer.zero_grad(set_to_none=True)
    states = torch.cuda.memory_allocated() - before - weights
    del trainer, model
    gc.collect()
    parts = predicted.to_dict()
    return case | {
        "weights_measured": weights, "weights_predicted": parts["weights"] + parts["adapter"],
        "optimizer_measured": states, "optimizer_predicted": parts["optimizer"],
        "step_measured": peak - weights - states,
        "step_predicted": parts["total"] - parts["weights"] - parts["adapter"] - parts["optimizer"],
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

    from helpers.settings import settings_for
    from helpers.sources import base_folder

    folder, rows, rng = Path("/tmp/llama2-7b-random"), Path("/tmp/ragged.jsonl"), random.Random(0)
    tiny = base_folder(settings_for("tiny"))
    random_7b(torch.bfloat16, "sdpa", False).save_pretrained(folder)
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
        text = json.dumps({"name": f"{method}-s0", "validation": False, "method": method, **changes})
        subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.benchmarks.reference_runs", "one", "--profile",
                        "llama2-7b", "--out", str(out), "--run", text], check=False)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("sweep", "seeds", "memory7b", "shape7b", "one"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--profile", default="small")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rates", type=Path, help="a folder of sweep records: use the best rates found there")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.part == "one":
        one(given.profile, given.out, **json.loads(given.run))
    elif given.part == "memory7b":
        memory7b(given.out)
    elif given.part == "shape7b":
        shape7b(given.out)
    elif given.part == "sweep":
        runs = [
            (f"rate-{m}-{rate:g}", True, {"method": m, "learning_rate": rate})
            for m, rates in SWEEP.items()
            for rate in rates
        ]
        spawn(given.profile, given.out, runs, given.jobs)
        rate = best_rates(given.out).get("lora")
        runs = [(f"variant-{v['method']}-r{v.get('rank', 16)}", True, v | {"learning_rate": rate}) for v in VARIANTS]
        spawn(given.profile, given.out, runs, given.jobs)
        print("best rates", best_rates(given.out))
    else:
        rates = best_rates(given.rates) if given.rates else {}
        runs = [("base-s0", False, {"method": "base"})]
        for seed in map(int, given.seeds.split(",")):
            for method in ("lora", "full"):
                changes = {"method": method, "seed": seed}
                runs.append((f"{method}-s{seed}", False, changes | ({"learning_rate": rates[method]} if rates else {})))
        spawn(given.profile, given.out, runs, 1)


if __name__ == "__main__":
    main()
