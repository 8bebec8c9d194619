"""Start a training on several devices of this machine, with accelerate. Each process runs ``notebooks/cluster/train.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from helpers import records
from helpers.engine.distributed import FOLLOW_PARENT, DistributedError, require
from helpers.settings import ROOT, Settings, settings_for

import torch

SCRIPT = "notebooks/cluster/train.py"
PROGRAMS = {"python": [], "accelerate": ["-m", "accelerate.commands.accelerate_cli"]}  # as arguments of this Python


def devices(settings: Settings) -> tuple[str, int]:
    """What a training is spread over, "GPU" or "CPU", and how many: by default all GPUs, or else two CPU processes.

    Raises:
        DistributedError: if ``settings.devices`` asks for more than there are.
    """
    gpus, wanted = torch.cuda.device_count(), settings.devices
    if wanted is None:
        return ("GPU", gpus) if gpus > 1 else ("CPU", 2)
    require(wanted, *((gpus, "GPUs") if gpus else (max(os.cpu_count() or 1, 2), "CPU processes")))
    return ("GPU" if gpus else "CPU"), wanted


def command(settings: Settings, count: int) -> list[str]:
    """The command that trains these settings on ``count`` devices of this machine, to be run in the repository."""
    default = settings_for(settings.profile, settings.method).table()
    changed = {name: value for name, value in settings.table().items() if value is not None and value != default[name]}
    work = [SCRIPT, json.dumps({"profile": settings.profile, "method": settings.method} | changed)]
    if count == 1:
        return ["python", *work]
    options = f"--multi_gpu --num_processes {count} --num_machines 1 --main_process_port 0 --mixed_precision no"
    # in spite of its name, --multi_gpu is torchrun, and CPUs will do
    return ["accelerate", "launch", *options.split(), "--dynamo_backend", "no", *work]


def launch(settings: Settings, kind: str, count: int) -> records.RunRecord:
    """Train on several devices of this machine, show the progress, and return the record that the run saved.

    Args:
        kind, count: as :func:`devices` gives them. "CPU" hides the GPUs from the processes.

    Raises:
        DistributedError: if a process failed; with its own words.
        SettingsError: if the rows of a step cannot be divided evenly.
    """
    settings.share(count)
    if settings.save_steps and count > 1:
        print("a training on several devices keeps no checkpoints: if it is interrupted, it starts again from step 0")
    # more threads than cores, in processes that wait for each other, cost a factor of sixty (16 on 8, gloo, 2026-11-28)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))}
    if kind == "CPU":
        environment |= {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
    program, *rest = command(settings, count)
    child = subprocess.Popen(
        [sys.executable, "-c", FOLLOW_PARENT, sys.executable, *PROGRAMS[program], *rest],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines = []
    try:
        for line in child.stdout:
            if line.startswith(f"{settings.method} on {count} "):  # the progress bar of the main process
                print(f"\r{line.rstrip()}", end="", flush=True)
            elif line.strip():
                lines.append(line.rstrip())
    except BaseException:
        child.terminate()  # a launcher ends its processes first
        raise
    finally:
        child.wait()
    print()
    if child.returncode:
        raise DistributedError(_cause(lines))
    return records.load(settings.folder)


def _cause(lines: list[str]) -> str:
    """The words of the first process that failed: later errors come from those that lost a partner, and the launcher."""
    for line in lines:
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    named = [line for line in lines if "Error" in line.partition(":")[0] and not line.startswith(" ")]
    return f"a process failed: {(named or lines[-1:] or ['it printed nothing'])[0]}"
