"""How fast this project trains the Llama-2-7B shape on one GPU: python -m tests.benchmarks.speed PART --out DIR

Parts:
    ladder   from the published recipe to this project's path, one lever a rung, for LoRA; then QLoRA and full
    growth   tokens per second and peak memory against row length, batch, rank and model size
    profile  where the time of a rung goes, by kernel and by call on the CPU (--only; default: the compiled LoRA rung)

Random weights, 1,000 synthetic rows of log-normal length (24 to 1,024 tokens), every token supervised. Speed counts
real tokens over 15 steps after 5 of warm-up; memory is what torch allocated at its peak. A table on the terminal, a
JSON file in DIR, written after each row.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

from helpers.batches import training_order
from helpers.data import Data, Example
from helpers.device import Plan, World, decide, describe
from helpers.engine.trainer import Steps, collator, fast, make_trainer
from helpers.memory import GB, SHAPES, Shape, predict
from helpers.models import load_tokenizer, to_train
from helpers.records import environment, git_state, now
from helpers.settings import ROOT, Settings, settings_for
from helpers.sources import quiet, resolve
from tests.benchmarks.rows import TIMED, WARM, ragged_rows, random_tokens

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def data_of(lengths: list[int], vocabulary: int = 32000) -> Data:
    """Rows of random tokens of these lengths, all supervised."""
    rows = [Example([], None, ids, list(ids)) for ids in random_tokens(lengths, vocabulary)]
    return Data(source="synthetic", counts={}, train=rows, validation=[], test=[], harder=[], prose=[])


def random_model(shape: Shape, dtype: torch.dtype, four_bit: bool = False):
    """A Llama of this shape with random weights on the GPU; in 4 bits its blocks are NF4 with double quantisation."""
    config = LlamaConfig(hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
                         num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
                         head_dim=shape.head_dim, tie_word_embeddings=shape.tied, max_position_embeddings=16384,
                         attn_implementation="sdpa")  # fmt: skip
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.model.rotary_emb.float()
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


def model_for(settings: Settings, shape: Shape):
    """A random model of this shape as a run with these settings would have it."""
    dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
    model = random_model(shape, dtype, settings.method == "qlora")
    model.set_attn_implementation("eager" if settings.attention == "eager" else "sdpa")
    return to_train(model, settings, settings.precision or "bf16")


def measure(name: str, method: str, shape: str = "Llama-2-7B", lengths: list[int] | None = None, profile=None,
            **changes) -> dict:  # fmt: skip
    """Twenty steps of one setting through the trainer of helpers.engine.trainer."""
    settings = settings_for(
        "llama2-7b", method, max_steps=WARM + TIMED, save_steps=0, schedule="constant", warmup_steps=0, **changes
    )
    device, sizes = describe(), SHAPES[shape]
    decisions = decide(settings, device, 0)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    data = data_of(lengths or ragged_rows(), min(sizes.vocabulary, 32000))
    order = training_order(data, settings)
    longest = max(len(r.input_ids) for batch in order for r in batch)
    rows = {"batch": 1, "length": settings.batch_tokens} if settings.batch_tokens else {
        "batch": settings.batch_size, "length": longest}  # fmt: skip
    chosen = {k: v["value"] for k, v in decisions.items()}
    predicted = predict(sizes, method, **rows, rank=settings.rank, targets=settings.targets, dropout=settings.dropout,
                        precision=chosen["precision"], attention=chosen["attention"], checkpointing=chosen["checkpointing"],
                        fused=chosen["kernels"] == "liger" or chosen["compile"])  # fmt: skip
    model = model_for(settings, sizes)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()  # what loading took is not what training takes
    ours, clock = Plan(device, decisions, predicted, World(), False), Steps()
    tokenizer = load_tokenizer(resolve(settings.change(model="tiny")))
    losses = []
    with quiet(), fast(model, ours):
        batches = collator(settings, ours, tokenizer, order)
        trainer = make_trainer(model, settings, ours, order, tokenizer, batches, clock)
        if profile:
            with profile:
                trainer.train()
        else:
            trainer.train()
        losses = [round(x["loss"], 4) for x in trainer.state.log_history if "loss" in x]
    per_step = settings.accumulation
    timed = [r for batch in order[WARM * per_step : (WARM + TIMED) * per_step] for r in batch]
    seconds = clock.steps[WARM + TIMED - 1]["seconds"] - clock.steps[WARM - 1]["seconds"]
    tokens = sum(len(r.input_ids) for r in timed)
    peak = torch.cuda.max_memory_allocated() - before
    flops = (6 if method == "full" else 4) * (sizes.parameters - sizes.vocabulary * sizes.hidden) * tokens / seconds
    row = {
        "name": name, "method": method, "shape": shape, **changes, "chosen": chosen, "tokens_per_second": round(tokens / seconds),
        "tokens_per_step": round(tokens / TIMED), "tflops": round(flops / 1e12), "peak_gb": round(peak / GB, 1),
        "predicted_gb": round(predicted.total / GB, 1), "warm_up_s": round(clock.steps[WARM - 1]["seconds"], 1),
        "first_losses": losses[:3], "last_loss": losses[-1],
    }  # fmt: skip
    print(f"{name:44} {row['tokens_per_second']:7,} tok/s {row['tflops']:4} TFLOP/s {row['peak_gb']:6.1f} GB "
          f"(predicted {row['predicted_gb']:.1f})  warm-up {row['warm_up_s']} s  loss {losses[:2]} .. {losses[-1]}", flush=True)  # fmt: skip
    return row


QV, PLAIN = {"targets": "q_proj,v_proj"}, {"kernels": "torch", "compile": False}
LADDER = [
    ("as published: fp32, padded", "lora", QV | PLAIN | {"precision": "fp32", "attention": "sdpa"}),
    ("bf16, checkpointing on", "lora", QV | PLAIN | {"attention": "sdpa", "checkpointing": True}),
    ("checkpointing off", "lora", QV | PLAIN | {"attention": "sdpa"}),
    ("rows end to end, varlen attention", "lora", QV | PLAIN),
    ("8,192 tokens a step", "lora", QV | PLAIN | {"batch_tokens": 8192}),
    ("each layer compiled", "lora", QV | {"batch_tokens": 8192, "compile": True}),
    ("products in fp8, compiled", "lora", QV | {"batch_tokens": 8192, "compile": True, "products": "fp8"}),
    ("16,384 tokens a step, compiled", "lora", QV | {"batch_tokens": 16384, "compile": True}),
    ("full, compiled, 8,192", "full", {"batch_tokens": 8192, "compile": True}),
    ("full, fp8, compiled, 8,192", "full", {"batch_tokens": 8192, "compile": True, "products": "fp8"}),
    ("all-linear, compiled, 8,192", "lora", {"targets": "all-linear", "batch_tokens": 8192, "compile": True}),
    (
        "all-linear, fp8, compiled, 8,192",
        "lora",
        {"targets": "all-linear", "batch_tokens": 8192, "compile": True, "products": "fp8"},
    ),
    ("QLoRA, 2,048", "qlora", QV | PLAIN | {"batch_tokens": 2048}),
    ("QLoRA, compiled, 2,048", "qlora", QV | {"batch_tokens": 2048, "compile": True}),
    ("Liger kernels, 8,192", "lora", QV | {"batch_tokens": 8192, "kernels": "liger"}),
    ("all-linear, Liger, 8,192", "lora", {"targets": "all-linear", "batch_tokens": 8192, "kernels": "liger"}),
    ("full, Liger, 8,192", "full", {"batch_tokens": 8192, "kernels": "liger"}),
    ("QLoRA, Liger, 2,048", "qlora", QV | {"batch_tokens": 2048, "kernels": "liger"}),
]


FAST = {"kernels": "liger", "batch_tokens": 8192}
GROWTH = [
    *((f"rows of {n:,} tokens", "lora", QV | FAST | {"lengths": [n] * 200, "max_length": n}) for n in (512, 1024, 2048, 4096, 8192)),
    *((f"{n:,} tokens a step", "lora", QV | FAST | {"batch_tokens": n}) for n in (1024, 2048, 4096, 16384, 32768)),
    *((f"rank {r}, all-linear", "lora", FAST | {"targets": "all-linear", "rank": r}) for r in (8, 64, 256)),
    *((f"{shape}, all-linear", "lora", FAST | {"targets": "all-linear", "shape": shape})
      for shape in ("SmolLM2-135M", "SmolLM2-1.7B", "Llama-3-8B")),
]  # fmt: skip


def table(rows: list, out: Path, part: str) -> None:
    """Measure each row; one that fails is kept with its reason."""
    found = []
    for name, method, changes in rows:
        torch._dynamo.reset()
        try:
            found.append(measure(name, method, **changes))
        except RuntimeError as error:
            found.append({"name": name, "failed": str(error).splitlines()[0][:300]})
            print(f"{name}: {found[-1]['failed']}", flush=True)
        gc.collect()
        result = {"device": torch.cuda.get_device_name(0), "date": now(), "commit": git_state(ROOT)[0],
                  "environment": environment(), "rows": found}  # fmt: skip
        (out / f"{part}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("ladder", "growth", "profile"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="the rows whose names hold one of these texts")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.part == "ladder":
        table([row for row in LADDER if any(text in row[0] for text in given.only or [""])], given.out, "ladder")
    if given.part == "growth":
        table(GROWTH, given.out, "growth")
    if given.part == "profile":
        from torch.profiler import ProfilerActivity, profile

        name, method, changes = next(row for row in LADDER if (given.only or ["each layer compiled"])[0] in row[0])
        profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
        row = measure(name, method, profile=profiler, **changes)
        for order in ("self_cuda_time_total", "self_cpu_time_total"):
            print(profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=70))
        result = {"device": torch.cuda.get_device_name(0), "date": now(), "commit": git_state(ROOT)[0],
                  "environment": environment(), "rung": name} | by_kind(profiler, row)  # fmt: skip
        print(json.dumps(result, indent=1))
        (given.out / "profile.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


KINDS = {
    "attention": ("flash", "fmha"),
    "matrix products": ("nvjet", "gemm", "cutlass", "xmma", "splitk"),
    "compiled": ("triton",),
}


def by_kind(profiler, row: dict) -> dict:
    """Seconds of the GPU by kind of kernel, over all steps, and the speed of its matrix products alone."""
    seconds = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            name = event.key.lower()
            kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
            seconds[kind] += event.self_device_time_total / 1e6
    operations = row["tflops"] / row["tokens_per_second"] * row["tokens_per_step"] * (WARM + TIMED)
    return {
        "share": {kind: round(s / sum(seconds.values()), 3) for kind, s in seconds.items()},
        "matrix_products_tflops": round(operations / seconds["matrix products"]),
    }


if __name__ == "__main__":
    main()
