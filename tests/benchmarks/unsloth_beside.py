"""Unsloth on the work of tests.benchmarks.speed: python -m tests.benchmarks.unsloth_beside --model FOLDER --out DIR

FOLDER holds the Llama-2-7B shape in safetensors, random weights will do, and a tokenizer with a padding token. Runs in
an environment of Unsloth's own, which wants older versions than this project: unsloth 2026.10.9, unsloth_zoo 2026.10.9,
transformers 5.17.0, trl 1.15.0, datasets 4.8.5, peft 0.21.2, bitsandbytes, and xformers for its fast path on packed
rows (with torch 2.11; without it each row is an attention call of its own). Imports nothing of helpers.

The same 1,000 rows, every token supervised, 5 warm-up and 15 timed steps, real tokens a second, torch's peak after
loading. ``trainer`` is Unsloth's patched SFTTrainer with packing=True: rows of 2,048 packed tokens, four at a time
(one for QLoRA). ``bare`` is a plain loop over its model, 4 x 2,048 random tokens without row boundaries. Each setting
has a process and a time limit of its own; DIR/unsloth.json is written after each.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from tests.benchmarks.rows import TIMED, WARM, ragged_rows, random_tokens

ROOT = Path(__file__).resolve().parents[2]
LENGTH, LINEAR = 2048, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROWS = {
    "LoRA q,v": {"method": "lora", "targets": ["q_proj", "v_proj"]},
    "LoRA all-linear": {"method": "lora", "targets": LINEAR},
    "QLoRA q,v, 2,048": {"method": "qlora", "targets": ["q_proj", "v_proj"], "batch": 1},
    "full, fused AdamW": {"method": "full"},
    "LoRA q,v, offloaded checkpoints": {"method": "lora", "targets": ["q_proj", "v_proj"], "checkpointing": "unsloth"},
    "full, 8-bit AdamW, offloaded checkpoints": {"method": "full", "checkpointing": "unsloth", "optim": "adamw_8bit"},
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1",
           "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
PACKAGES = ("unsloth", "unsloth_zoo", "torch", "triton", "transformers", "trl", "peft", "bitsandbytes", "xformers")


def load(folder: str, method: str, targets: list | None = None, checkpointing: bool | str = False):
    """Unsloth's model and tokenizer, the adapter on it."""
    import torch
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        folder, max_seq_length=LENGTH, dtype=torch.bfloat16, load_in_4bit=method == "qlora",
        full_finetuning=method == "full", use_gradient_checkpointing=checkpointing, use_exact_model_name=True,
    )  # fmt: skip
    if method != "full":
        model = FastLanguageModel.get_peft_model(
            model, r=8, lora_alpha=16, lora_dropout=0, bias="none", target_modules=targets, max_seq_length=LENGTH,
            use_gradient_checkpointing=checkpointing, random_state=0,
        )  # fmt: skip
    return model, tokenizer


def figures(ends: list[float], tokens: list[int], losses: list[float]) -> dict:
    """Speed over the timed steps, and the peak since it was last reset."""
    import torch

    timed = slice(WARM, WARM + TIMED)
    return {
        "tokens_per_second": round(sum(tokens[timed]) / (ends[WARM + TIMED - 1] - ends[WARM - 1])),
        "tokens_per_step": round(sum(tokens[timed]) / TIMED),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
    }


def by_trainer(model, tokenizer, out: Path, batch: int, checkpointing: bool | str, optim: str) -> dict:
    """Twenty steps of Unsloth's trainer on packed rows."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            torch.cuda.synchronize()
            ends.append(time.perf_counter())

    ends: list[float] = []
    tokens: list[int] = []
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, callbacks=[Clock()],
        train_dataset=Dataset.from_dict({"input_ids": random_tokens(ragged_rows())}),
        args=SFTConfig(
            output_dir=str(out / "trainer"), max_length=LENGTH, packing=True, per_device_train_batch_size=batch,
            gradient_accumulation_steps=1, max_steps=WARM + TIMED, learning_rate=1e-4, lr_scheduler_type="constant",
            optim=optim, bf16=True, logging_steps=1, save_strategy="no", report_to="none", seed=0,
            gradient_checkpointing=bool(checkpointing), disable_tqdm=True,
        ),
    )  # fmt: skip
    collate, seen = trainer.data_collator.torch_call, {}

    def counted(examples):
        """What Unsloth's collator makes of a batch, whose real tokens are counted."""
        tokens.append(sum(len(e["input_ids"]) for e in examples))
        made = collate(examples)
        seen.update({key: list(value.shape) for key, value in made.items() if hasattr(value, "shape")})
        return made

    trainer.data_collator.torch_call = counted
    trainer.train()
    losses = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    return figures(ends, tokens, losses) | {"batch": seen, "packed": len(trainer.train_dataset)}


def bare(model, batch: int) -> dict:
    """Twenty steps without a trainer: rows without boundaries or padding."""
    import torch
    from unsloth import FastLanguageModel

    FastLanguageModel.for_training(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    ends, losses = [], []
    for _ in range(WARM + TIMED):
        ids = torch.randint(3, 32000, (batch, LENGTH), generator=generator).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        ends.append(time.perf_counter())
    return figures(ends, [batch * LENGTH] * len(ends), losses)


def child(name: str, folder: str, out: Path) -> None:
    """One row in this process, printed after each part as a line that starts with ROW."""
    setting = {"batch": 4, "checkpointing": False, "optim": "adamw_torch_fused"} | ROWS[name]
    adapter = {key: setting[key] for key in ("method", "targets", "checkpointing") if key in setting}
    begin = time.perf_counter()
    model, tokenizer = load(folder, **adapter)
    import torch
    from unsloth.utils.attention_dispatch import HAS_FLASH_ATTENTION, HAS_XFORMERS

    trained = [p for p in model.parameters() if p.requires_grad]
    row = {
        "name": name, **setting, "load_s": round(time.perf_counter() - begin), "device": torch.cuda.get_device_name(0),
        "attention": "flash" if HAS_FLASH_ATTENTION else "xformers" if HAS_XFORMERS else "sdpa",
        "trained": sum(p.numel() for p in trained), "trained_dtypes": sorted({str(p.dtype) for p in trained}),
    }  # fmt: skip
    parts = {
        "trainer": lambda: by_trainer(model, tokenizer, out, *(setting[k] for k in ("batch", "checkpointing", "optim")))
    }
    if setting["method"] != "full":
        parts["bare"] = lambda: bare(model, setting["batch"])
    for part, run in parts.items():
        model.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # what loading took is not what training takes
        try:
            row[part] = run()
        except Exception as error:  # whatever another project's code raises: the other part is still worth its figure
            import traceback

            traceback.print_exc()
            row[part] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        print("\nROW " + json.dumps(row), flush=True)


def measure(name: str, folder: Path, out: Path, limit: float) -> dict:
    """One row in a process of its own; what it printed goes to a log file, its last line of figures comes back."""
    log = out / f"{list(ROWS).index(name)}.log"
    command = [sys.executable, "-m", "tests.benchmarks.unsloth_beside", "--model", str(folder), "--out", str(out)]
    environment = os.environ | OFFLINE | {"UNSLOTH_COMPILE_LOCATION": str(out / "compiled")}
    with log.open("w", encoding="utf-8") as handle:
        try:
            code = subprocess.run([*command, "--row", name], cwd=ROOT, env=environment, stdout=handle, timeout=limit,
                                  stderr=subprocess.STDOUT, check=False).returncode  # fmt: skip
            end = f"exit code {code}" if code else None
        except subprocess.TimeoutExpired:
            end = f"not done after {limit:.0f} s"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [json.loads(line.removeprefix("ROW ")) for line in lines if line.startswith("ROW ")]
    row = found[-1] if found else {"name": name}
    return row | ({"failed": end, "last_lines": lines[-3:]} if end else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--limit", type=float, default=110, help="seconds a row")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    out, folder = given.out.resolve(), given.model.resolve()
    if given.row:
        return child(given.row, str(folder), out)
    out.mkdir(parents=True, exist_ok=True)
    versions = {name: version(name) if find_spec(name) else None for name in PACKAGES}
    print(datetime.now(UTC).date(), ", ".join(f"{name} {number or 'absent'}" for name, number in versions.items()))
    rows = []
    for name in (name for name in ROWS if given.only in name):
        rows.append(row := measure(name, folder, out, given.limit))
        result = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "versions": versions, "rows": rows}
        (out / "unsloth.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        for part in ("trainer", "bare"):
            if "tokens_per_second" in (got := row.get(part, {})):
                print(f"{name:42} {part:8}{got['tokens_per_second']:7,} tok/s {got['peak_gb']:6.1f} GB  "
                      f"{got['tokens_per_step']:,} tokens a step, {row['attention']}, loss {got['losses']}", flush=True)  # fmt: skip
            elif got:
                print(f"{name:42} {part:8}{got['failed']}", flush=True)
        if "failed" in row:
            print(f"{name:42} {row['failed']}: {' | '.join(row['last_lines'])[-400:]}", flush=True)
    print(f"on {next((row['device'] for row in rows if 'device' in row), 'no device')}")


if __name__ == "__main__":
    main()
