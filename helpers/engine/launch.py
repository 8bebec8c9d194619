"""Start a training on several devices of this machine, or be started as one of its processes.

    python -m helpers.engine.launch '{"profile": "small", "method": "full"}'                                        one device
    accelerate launch --multi_gpu --num_processes 2 -m helpers.engine.launch '{"profile": "small", "method": "full"}'
    torchrun --nproc_per_node 2 -m helpers.engine.launch '{"profile": "small", "method": "full"}'

The JSON holds a profile, a method and any changes to their settings. All three end in the same record.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback

from helpers import records
from helpers.device import free_memory
from helpers.engine.distributed import DistributedError, end_with_parent, is_main, share, start, too_many, wait
from helpers.settings import ROOT, Settings, settings_for

import psutil
import torch


def devices(settings: Settings) -> tuple[str, int]:
    """What a training is spread over, "GPU" or "CPU", and how many: by default all GPUs, or else two CPU processes.

    Raises:
        DistributedError: if ``settings.devices`` asks for more than there are; says how many there are.
    """
    gpus, cores, wanted = torch.cuda.device_count(), os.cpu_count() or 1, settings.devices
    if wanted is None:
        return ("GPU", gpus) if gpus > 1 else ("CPU", 2)
    if gpus and wanted > gpus:
        raise DistributedError(too_many(wanted, gpus))
    if not gpus and wanted > max(cores, 2):
        raise DistributedError(
            f"{wanted} CPU processes were asked for, but this machine has {cores} cores: ask for at most that many"
        )
    return ("GPU" if gpus else "CPU"), wanted


def command(settings: Settings, count: int, evaluate: bool = False) -> list[str]:
    """The command that trains these settings on ``count`` devices of this machine, to be run in the repository."""
    usual = settings_for(settings.profile, settings.method).table()
    changed = {name: value for name, value in settings.table().items() if value is not None and value != usual[name]}
    what = json.dumps({"profile": settings.profile, "method": settings.method} | changed)
    work = ["-m", "helpers.engine.launch", what, *["--evaluate"] * evaluate]
    if count == 1:
        return ["python", *work]
    return [
        "accelerate", "launch", "--multi_gpu",  # in spite of its name, this is torchrun, and CPUs will do
        "--num_processes", str(count), "--num_machines", "1", "--main_process_port", "0", "--mixed_precision", "no",
        "--dynamo_backend", "no", *work,
    ]  # fmt: skip


def launch(settings: Settings, kind: str, count: int, evaluate: bool = False) -> records.RunRecord:
    """Train on several devices of this machine, show the progress, and return the record that the run saved.

    Args:
        kind, count: as :func:`devices` gives them. "CPU" hides the GPUs from the processes.

    Raises:
        DistributedError: if a process failed; with its own words.
        SettingsError: if the rows of a step cannot be shared out evenly.
    """
    share(settings, count)
    if count == 1 and (kind == "GPU") == torch.cuda.is_available():
        record = train_and_save(settings, evaluate)  # this process will do
        free_memory()
        return record
    if settings.save_steps:
        print("no checkpoints are kept inside a training on several devices: if it is interrupted, it starts anew")
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))} | os.environ
    if kind == "CPU":
        environment |= {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
    program, *rest = command(settings, count, evaluate)
    module = ["-m", "accelerate.commands.accelerate_cli"] if program == "accelerate" else []
    child = subprocess.Popen(
        [sys.executable, *module, *rest], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True, preexec_fn=end_with_parent,
    )  # fmt: skip
    said = []
    try:
        for line in child.stdout:
            if line.startswith(f"{settings.method} on {count} "):  # the progress bar of the main process
                print(f"\r{line.rstrip()}", end="", flush=True)
            elif line.strip():
                said.append(line.rstrip())
        child.wait()
    except BaseException:
        _end(child)
        raise
    print()
    if child.returncode:
        raise DistributedError(_cause(said))
    return records.load(settings.folder)


def _end(child: subprocess.Popen) -> None:
    """End the launcher, which ends its processes; whatever is left after half a minute is killed."""
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    child.terminate()
    for process in psutil.wait_procs(family, timeout=30)[1]:
        process.kill()
    child.wait()


def _cause(said: list[str]) -> str:
    """What the first process to fail said: later errors are of those that lost a partner, and of the launcher."""
    for line in said:
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    named = [line for line in said if "Error" in line.partition(":")[0] and not line.startswith(" ")]
    return f"a process failed: {(named or said[-1:] or ['it said nothing'])[0]}"


def train_and_save(settings: Settings, evaluate: bool = False) -> records.RunRecord:
    """What each process does: prepare the data and train. The main process evaluates and saves the record."""
    from helpers.data import prepare
    from helpers.evaluation import evaluate as measure
    from helpers.models import load_tokenizer

    first = int(os.environ.get("LOCAL_RANK", 0)) == 0  # on each machine: fetches the model where it is not there yet
    if not first:
        wait()
    data = prepare(settings, load_tokenizer(settings))
    if first:
        wait()
    from helpers.training import train  # slow to import, so only after data and model were found good

    trained = train(settings, data)
    if is_main():
        if evaluate:
            trained.record.evaluation = measure(trained.model, trained.tokenizer, data, settings)
        trained.record.save(trained.folder)
    return trained.record


def main() -> None:
    """One process of a training: the settings come from the command line, its number from the environment."""
    parser = argparse.ArgumentParser(
        prog="helpers.engine.launch", description="Train on the devices that a launcher gave."
    )
    parser.add_argument("settings", help='JSON, such as {"profile": "llama2-7b", "method": "full", "max_steps": 100}')
    parser.add_argument("--evaluate", action="store_true", help="score the result on the test rows")
    asked = parser.parse_args()
    try:
        given = json.loads(asked.settings)
        start()
        train_and_save(settings_for(given.pop("profile"), given.pop("method"), **given), asked.evaluate)
    except (ValueError, RuntimeError) as error:
        traceback.print_exc()
        sys.stderr.write(f"\nerror: {error}\n")  # in one piece: several processes write here
        sys.exit(1)


if __name__ == "__main__":
    main()
