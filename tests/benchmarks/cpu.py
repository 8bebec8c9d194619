"""LoRA on `small` on a CPU, TRL's defaults beside this project's path: python -m tests.benchmarks.cpu [--steps 8] [--out FILE]

Each in a process of its own, one after the other: TRL's SFTTrainer as it comes (its own loss, checkpointing, bf16 by
autocast, the C library's usual malloc), and the path of the notebooks with the settings of the Makefile. The same rows
in the same order, two steps of warm-up. Then the base model answers the same questions: one at a time in the precision that
transformers loads it in, and as the notebooks evaluate. Prints tokens and questions per second, ratios, and the losses of both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers.settings import ROOT, settings_for

WARM, QUESTIONS = 2, 40


def theirs(steps: int) -> dict:
    """TRL's trainer, nothing set but what the task asks for."""
    from helpers.batches import training_order
    from helpers.data import prepare
    from helpers.engine.trainer import Steps
    from helpers.models import adapter_config, load_tokenizer
    from helpers.sources import resolve

    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = settings_for("small", "lora", max_steps=WARM + steps, warmup_steps=0)
    tokenizer, clock = load_tokenizer(resolve(settings)), Steps()
    order = training_order(prepare(settings, tokenizer), settings)
    rows = [row for batch in order for row in batch]
    with TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=str(resolve(settings).folder), processing_class=tokenizer, peft_config=adapter_config(settings), callbacks=[clock],
            train_dataset=Dataset.from_dict({"input_ids": [r.input_ids for r in rows], "labels": [r.labels for r in rows]}),
            args=SFTConfig(
                output_dir=folder, max_steps=WARM + steps, per_device_train_batch_size=settings.batch_size, use_cpu=True, seed=0,
                learning_rate=settings.learning_rate, lr_scheduler_type=settings.schedule, logging_steps=1, report_to="none",
                save_strategy="no", disable_tqdm=True, max_length=None, shuffle_dataset=False,
                train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True},
            ),
        )  # fmt: skip
        trainer.train()
    tokens = sum(len(row.input_ids) for batch in order[WARM:] for row in batch)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens_per_second": tokens / (clock.steps[-1]["seconds"] - clock.steps[WARM - 1]["seconds"]),
        "losses": losses,
    } | their_answers()


def their_answers() -> dict:
    """Greedy answers one at a time, by transformers as it comes."""
    from helpers.data import prepare
    from helpers.models import load_tokenizer
    from helpers.sources import resolve

    from transformers import AutoModelForCausalLM

    settings = settings_for("small", "lora")
    tokenizer = load_tokenizer(resolve(settings))
    model = AutoModelForCausalLM.from_pretrained(resolve(settings).folder, dtype="auto").eval()
    asked, replies, start = prepare(settings, tokenizer).test[:QUESTIONS], [], time.perf_counter()
    for example in asked:
        inputs = tokenizer.apply_chat_template(
            example.prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        out = model.generate(
            **inputs, max_new_tokens=settings.max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        replies.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return {"questions_per_second": len(asked) / (time.perf_counter() - start), "replies": replies}


def ours(steps: int) -> dict:
    """The path of 02_lora_train."""
    from helpers.data import prepare
    from helpers.engine.ladder import measure
    from helpers.models import load_tokenizer
    from helpers.sources import resolve

    settings = settings_for("small", "lora")
    found = measure(settings, prepare(settings, load_tokenizer(resolve(settings))), steps)
    return {"tokens_per_second": found["tokens_per_second"], "losses": found["losses"]} | our_answers()


def our_answers() -> dict:
    """Greedy answers as the notebooks evaluate: many at a time, in the precision that the device multiplies."""
    from helpers.data import prepare
    from helpers.device import plan
    from helpers.evaluation import answers
    from helpers.models import load_base, load_tokenizer
    from helpers.sources import resolve

    settings = settings_for("small", "lora")
    base = resolve(settings)
    tokenizer = load_tokenizer(base)
    asked = prepare(settings, tokenizer).test[:QUESTIONS]
    model = load_base(base, **plan(settings, base.shape).loading | {"attention": "sdpa"})  # as evaluate answers
    start = time.perf_counter()
    replies = answers(model, tokenizer, asked, settings.max_new_tokens, settings.eval_batch_size)
    return {"questions_per_second": QUESTIONS / (time.perf_counter() - start), "replies": replies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=("theirs", "ours"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print("RESULT " + json.dumps(globals()[given.one](given.steps)))
        return
    found = {}
    for name in ("theirs", "ours"):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        if name == "ours":
            environment |= {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_THRESHOLD_": "4294967296",
                            "MALLOC_TOP_PAD_": "268435456"}  # fmt: skip
        done = subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.benchmarks.cpu", "--one", name, "--steps", str(given.steps)],
                              cwd=ROOT, env=environment, capture_output=True, text=True)  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            sys.exit(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
        found[name] = json.loads(lines[0].removeprefix("RESULT "))
        print(
            f"{name:8} {found[name]['tokens_per_second']:6.0f} tok/s  losses",
            *(f"{x:.4f}" for x in found[name]["losses"]),
            flush=True,
        )
    for measure in ("tokens_per_second", "questions_per_second"):
        mine, plain = (found[name][measure] for name in ("ours", "theirs"))
        print(f"{measure}: {plain:.2f} and {mine:.2f}, ratio {mine / plain:.2f}")
    same = [a == b for a, b in zip(found["theirs"]["replies"], found["ours"]["replies"], strict=True)]
    print(f"equal replies: {sum(same)} of {len(same)}")
    if given.out:
        given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
