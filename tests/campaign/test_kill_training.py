"""A training killed at twenty random moments always ends with the losses of one that nothing interrupted.

Slow, so `make campaign` and not `make test`. Every second kill waits for a checkpoint that is being written. Measured on
2026-11-22 on one core of a CPU (AMD EPYC): 20 kills, 10 of them inside a checkpoint; 7 trainings finished, 4 of them after
a resume, each with the very losses of the run that nothing interrupted.
"""

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.settings import ROOT
from helpers.sources import MANIFEST

KILLS = 20
CHILD = """
import json, sys
from pathlib import Path

import helpers
from helpers.data import prepare
from helpers.models import load_tokenizer
from helpers.settings import settings_for
from helpers.sources import resolve
from helpers.training import train

method, runs_dir = sys.argv[1:]
settings = settings_for("tiny", method, runs_dir=runs_dir, max_steps=12, save_steps=2, dropout=0.1)
data = prepare(settings, load_tokenizer(resolve(settings)))
print("training", flush=True)
record = train(settings, data).record
Path(runs_dir, "done.json").write_text(json.dumps([[s["loss"] for s in record.steps], record.training["resumed_from"]]))
"""


def start(method: str, folder: Path) -> subprocess.Popen:
    """A training in a process of its own, returned when its imports are done."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, method, str(folder)], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while "training" not in (line := child.stdout.readline()):
        assert line, "the training ended before it began"
    return child


def unsealed(folder: Path) -> bool:
    """Whether a checkpoint is being written, or was left unfinished."""
    return any(not (f / MANIFEST).exists() for f in folder.glob("tiny/*/checkpoints/checkpoint-*"))


def wait_for_a_checkpoint(child: subprocess.Popen, folder: Path, number: int) -> None:
    """Until this one, counted from 1, is being written, or the training has ended."""
    for wanted in number * (False, True):  # what the kill before left is cleared first
        while child.poll() is None and unsealed(folder) is not wanted:
            time.sleep(0.001)


def test_killed_twenty_times_a_training_ends_with_the_same_losses(tmp_path):
    rng, counted = random.Random(), collections.Counter()
    expected, seconds = {}, {}
    for method in ("lora", "full"):
        child, begun = start(method, tmp_path / method), time.monotonic()
        assert child.wait(timeout=300) == 0
        seconds[method] = time.monotonic() - begun
        expected[method] = json.loads((tmp_path / method / "done.json").read_text())[0]
        shutil.rmtree(tmp_path / method)
    for kill in range(10_000):
        method = ("lora", "full")[counted["finished"] % 2]
        folder = tmp_path / method
        child, begun = start(method, folder), time.monotonic()
        if counted["kills"] < KILLS:
            wait = rng.uniform(0, seconds[method])
            if kill % 2:
                wait_for_a_checkpoint(
                    child, folder, 1 + kill // 2 % 2
                )  # the second one leaves a whole one to resume from
                wait = rng.uniform(0, 0.008)  # seconds; the whole checkpoint takes about 20 ms here
            time.sleep(wait)
            if child.poll() is None and not (folder / "done.json").exists():
                os.killpg(child.pid, signal.SIGKILL)
                counted["kills"] += 1
                counted["kills inside a checkpoint"] += unsealed(folder)
        assert child.wait(timeout=300) in (0, -signal.SIGKILL)
        if (folder / "done.json").exists():
            losses, resumed_from = json.loads((folder / "done.json").read_text())
            assert losses == expected[method]
            counted["finished"] += 1
            counted["finished after a resume"] += resumed_from is not None
            shutil.rmtree(folder)
            if counted["kills"] >= KILLS:
                break
    print(dict(counted))
    assert counted["kills"] == KILLS and counted["kills inside a checkpoint"] and counted["finished after a resume"]
