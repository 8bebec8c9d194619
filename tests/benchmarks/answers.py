"""How fast a GPU answers: python -m tests.benchmarks.answers --out DIR

24 prompts of 24 to 96 tokens, 128 new tokens each, the Llama-2-7B shape with random weights in bf16: transformers' generate
as it comes, and helpers.inference with one step captured in a CUDA graph. The first call of each is timed too.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from unittest.mock import patch

from helpers import inference
from helpers.memory import SHAPES
from helpers.records import environment, now
from tests.benchmarks.speed import random_model

import torch


class Numbers:
    """Stands in for a tokenizer: a conversation is its list of token ids, an answer the ids as text."""

    pad_token_id, eos_token_id = 0, 2

    def __call__(self, texts, **_):
        longest = max(map(len, texts))
        rows = {"input_ids": [[0] * (longest - len(t)) + t for t in texts]}
        rows["attention_mask"] = [[0] * (longest - len(t)) + [1] * len(t) for t in texts]
        return Batch({name: torch.tensor(values) for name, values in rows.items()})

    def batch_decode(self, rows, **_):
        return [" ".join(map(str, row.tolist())) for row in rows]


class Batch(dict):
    def to(self, device):
        return Batch({name: tensor.to(device) for name, tensor in self.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", default="Llama-2-7B", choices=SHAPES)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model, rng, rows, answers = random_model(SHAPES[given.shape], torch.bfloat16), random.Random(0), [], {}
    prompts = [[rng.randrange(3, 32000) for _ in range(rng.randrange(24, 97))] for _ in range(24)]
    slow = patch.object(inference, "_replay", lambda *_, **__: None)
    with (
        patch.object(inference, "render", lambda tokenizer, ids, *_: ids),
        patch.object(inference, "end_tokens", lambda _: {2}),
    ):
        for name in ("generate", "one step captured"):
            for call in ("first", "second", "third"):
                torch.cuda.synchronize()
                start = time.perf_counter()
                if name == "generate":
                    with slow:
                        answers[name] = inference.generate(model, Numbers(), prompts, 128)
                else:
                    answers[name] = inference.generate(model, Numbers(), prompts, 128)
                rows.append({"name": name, "call": call, "seconds": round(time.perf_counter() - start, 2)})
                print(rows[-1], flush=True)
    same = [a == b for a, b in zip(*answers.values(), strict=True)]
    tokens = [
        x == y for a, b in zip(*answers.values(), strict=True) for x, y in zip(a.split(), b.split(), strict=False)
    ]
    result = {"device": torch.cuda.get_device_name(0), "date": now(), "environment": environment(), "rows": rows,
              "equal_answers": sum(same), "of": len(same), "equal_tokens": sum(tokens) / len(tokens)}  # fmt: skip
    (given.out / "answers.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print({k: v for k, v in result.items() if k not in ("environment", "rows")})


if __name__ == "__main__":
    main()
