"""Starting one training on several devices: how many, what is refused, and the files for a cluster."""

import os
import subprocess

from helpers.engine import launch
from helpers.engine.distributed import DistributedError
from helpers.engine.launch import devices
from helpers.settings import ROOT, settings_for

import pytest
import torch

CLUSTER = ROOT / "notebooks" / "cluster"


@pytest.mark.parametrize(
    ("gpus", "wanted", "expected"),
    [(0, None, ("CPU", 2)), (1, None, ("CPU", 2)), (4, None, ("GPU", 4)), (4, 2, ("GPU", 2))],
)
def test_all_gpus_or_two_processes(monkeypatch, gpus, wanted, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert devices(settings_for("tiny", devices=wanted)) == expected


@pytest.mark.parametrize(
    ("gpus", "said"),
    [(2, "3 GPUs were asked for, but at most 2 can be used here: ask"), (0, "3 CPU processes .* at most 2")],
)
def test_devices_that_do_not_exist_are_refused(monkeypatch, gpus, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(DistributedError, match=said):
        devices(settings_for("tiny", devices=3))


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(DistributedError, match=f"there is no model in {tmp_path}"):
        launch.launch(settings_for("tiny", model=str(tmp_path), runs_dir=str(tmp_path)), "CPU", 2)


@pytest.mark.parametrize(("own", "count", "each"), [(8, 2, "4"), (8, 1, "8"), (6, 4, "1"), (1, 2, "1")])
def test_processes_share_the_threads_of_this_one_whatever_the_shell_says(monkeypatch, tmp_path, own, count, each):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setattr(torch, "get_num_threads", lambda: own)
    given = {}
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: given.update(env) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launch.launch(settings_for("tiny", runs_dir=str(tmp_path)), "CPU", count)
    assert given["OMP_NUM_THREADS"] == each


def test_cluster_files_are_shell_and_torchrun_knows_their_arguments(tmp_path):
    from torch.distributed.run import get_args_parser

    for script in [*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.slurm")]:
        subprocess.run(["bash", "-n", script], check=True)
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "torchrun"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    given = {"PATH": os.environ["PATH"], "VENV": str(tmp_path), "HEAD": "node0", "NODES": "2", "GPUS": "4"}
    settings = '{"profile": "tiny", "method": "full"}'
    said = subprocess.run(
        ["bash", CLUSTER / "torchrun.sh", settings], env=given, capture_output=True, text=True, check=True
    )
    parsed = get_args_parser().parse_args(said.stdout.splitlines())
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_endpoint) == ("2", "4", "node0:29500")
    assert (ROOT / parsed.training_script).is_file() and parsed.training_script_args == [settings, "--evaluate"]
    without = subprocess.run(
        ["bash", CLUSTER / "torchrun.sh", settings], env={"PATH": given["PATH"]}, capture_output=True, text=True
    )
    assert without.returncode and "set HEAD to the name" in without.stderr
