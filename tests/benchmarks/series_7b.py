"""The notebooks on the Llama-2-7B shape: python -m tests.benchmarks.series_7b --out DIR [--notebooks "00 01"] [--shape tiny]

Makes a local folder with random weights of that shape (safetensors shards, the tiny model's tokenizer), runs the
notebooks on it without a browser, with the profile llama2-7b, made-up rows and a few steps, and prints and writes
(``series-7b.json``) one line for each notebook: seconds, peak memory. Answers and scores mean nothing here.

What ran before in DIR is not run again, so a machine that is lent for minutes can go on.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

from helpers.device import describe
from helpers.memory import SHAPES, free_memory
from helpers.records import environment, git_state, now
from helpers.settings import ROOT, settings_for
from helpers.sources import resolve

import torch

WORDS = ["memory", "weight", "rank", "step", "token", "layer", "batch", "loss", "head", "query", "value", "key"]
SHARD = {"Llama-2-7B": "5GB", "tiny": "100KB"}


def make_model(folder: Path, shape: str) -> None:
    """Random bf16 weights of a shape, in shards, and a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    if (folder / "config.json").is_file():
        return
    tiny = resolve(settings_for("tiny")).folder
    config = AutoConfig.from_pretrained(tiny)
    if shape != "tiny":
        s = SHAPES[shape]
        config = LlamaConfig(
            vocab_size=s.vocabulary, hidden_size=s.hidden, intermediate_size=s.intermediate, num_hidden_layers=s.layers,
            num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, max_position_embeddings=4096,
            tie_word_embeddings=s.tied, bos_token_id=1, eos_token_id=2, pad_token_id=3,
        )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda:0" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size=SHARD[shape])


def make_rows(file: Path) -> None:
    """Chat rows of ragged length without an answer that could be scored, as guanaco's are."""
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as handle:
        for number in range(600):
            words = rng.choices(WORDS, k=rng.randint(8, 160))
            row = {"question": f"Say something about topic {number}.", "answer": " ".join(words)}
            handle.write(json.dumps(row) + "\n")


class Watch:
    """The most memory in use on the device while a block runs, whoever uses it, less what was in use before; bytes."""

    def __enter__(self) -> Watch:
        self.before = self.peak = self._used()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    @staticmethod
    def _used() -> int:
        if not torch.cuda.is_available():
            return 0
        free, total = torch.cuda.mem_get_info(0)
        return total - free

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            self.peak = max(self.peak, self._used())


def known(notebook: Path) -> str:
    """The source of a notebook's parameters cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))


def execute(notebook: Path, parameters: dict, runs: Path) -> tuple[str, int | None]:
    """Run one notebook by the runner; its end and its largest resident memory."""
    words = " ".join(f"{name}={value}" for name, value in parameters.items() if f"{name} =" in known(notebook))
    done = subprocess.run(
        [sys.executable, "-m", "helpers.headless", "--profile", "llama2-7b", "--notebooks", notebook.stem,
         "--params", words, "--runs-dir", str(runs)], cwd=ROOT, check=False,
    )  # fmt: skip
    status = json.loads((runs / "llama2-7b" / "status.json").read_text(encoding="utf-8"))["notebooks"]
    return "ok" if done.returncode == 0 else f"exit {done.returncode}", status[notebook.stem].get("peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("series-7b"))
    parser.add_argument("--notebooks", default="00 01 02 03 04 05 06")
    parser.add_argument("--shape", default="Llama-2-7B", choices=SHARD)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    make_model(out / "model", given.shape)
    free_memory()
    print(f"{given.shape}: model folder after {time.perf_counter() - begin:.0f} s", flush=True)
    make_rows(out / "rows.jsonl")
    parameters = {"model": str(out / "model"), "data": str(out / "rows.jsonl"), "max_steps": given.steps}
    table = out / "series-7b.json"
    rows = {r["notebook"]: r for r in json.loads(table.read_text())["rows"]} if table.is_file() else {}
    for number in given.notebooks.split():
        notebook = next((ROOT / "notebooks").glob(f"{number}_*.ipynb"))
        if rows.get(notebook.stem, {}).get("status") == "ok":
            continue
        start = time.perf_counter()
        with Watch() as watch:
            end, resident = execute(notebook, parameters, out / "runs")
        rows[notebook.stem] = {
            "notebook": notebook.stem, "status": end, "seconds": round(time.perf_counter() - start, 1),
            "peak_memory": watch.peak - watch.before or None, "resident": resident, "finished": now(),
            "devices": torch.cuda.device_count(), "commit": git_state(ROOT)[0],
        }  # fmt: skip
        table.write_text(json.dumps({
            "what": f"{given.shape} with random weights, made-up rows, {given.steps} steps",
            "device": vars(describe()), "environment": environment(), "rows": list(rows.values()),
        }, indent=1), encoding="utf-8")  # fmt: skip
        if end != "ok":
            break
    print(f"\n{'notebook':<18}{'status':<10}{'seconds':>9}{'device GB':>11}{'main GB':>9}")
    for row in rows.values():
        sizes = [f"{row[k] / 1e9:.1f}" if row[k] else "-" for k in ("peak_memory", "resident")]
        print(f"{row['notebook']:<18}{row['status']:<10}{row['seconds']:>9.1f}{sizes[0]:>11}{sizes[1]:>9}")
    sys.exit(any(row["status"] != "ok" for row in rows.values()))


if __name__ == "__main__":
    main()
