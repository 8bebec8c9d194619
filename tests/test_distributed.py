"""Several processes train what one would: the same rows, equal losses, half the memory; and the result is an ordinary model."""

import os
import subprocess

from helpers import distributed, launch, records
from helpers.distributed import DistributedError, share
from helpers.inference import load_saved
from helpers.launch import devices
from helpers.memory import SHAPES, predict
from helpers.settings import ROOT, SettingsError, settings_for
from helpers.training import train

import pytest
import torch

CLUSTER = ROOT / "notebooks" / "cluster"


@pytest.fixture(scope="session")
def pair(tmp_path_factory, data):
    """The same full fine-tuning in fp32, in this process and sharded over two."""
    made = []
    for count in (1, 2):
        settings = settings_for(
            "tiny", "full", precision="fp32", max_steps=4, runs_dir=str(tmp_path_factory.mktemp(f"on-{count}"))
        )
        if count == 1:
            trained = train(settings, data)
            trained.record.save(trained.folder)
        else:
            launch.launch(settings, "CPU", count)
        made.append((settings, records.load(settings.folder)))
    return made


def test_two_processes_make_the_steps_of_one(pair):
    (_, one), (_, two) = pair
    assert two.training["processes"] == 2 and two.data["order"] == one.data["order"]
    for name in ("loss", "grad_norm"):
        assert [s[name] for s in two.steps] == pytest.approx([s[name] for s in one.steps], rel=1e-4), name
    assert two.training["validation_loss"] == pytest.approx(one.training["validation_loss"], rel=1e-4)


def test_each_process_holds_half_of_everything(pair):
    (_, one), (_, two) = pair
    whole = one.memory["ranks"][0]
    for report in two.memory["ranks"]:
        for part in ("parameters", "gradients", "optimizer"):
            assert report[part] == pytest.approx(whole[part] / 2, rel=0.01), part
        for shape in report["shapes"]:
            assert shape["local"] == [shape["whole"][0] // 2, *shape["whole"][1:]] and shape["dtype"] == "float32"
    assert {"each process holds its part", "full trains everything"} <= {g["name"] for g in two.guards}


def test_a_sharded_run_leaves_a_model_that_one_process_loads(pair, data):
    ids = torch.tensor([data.test[0].input_ids])
    one, two = (load_saved(settings.folder / "model")[0].eval()(ids).logits for settings, _ in pair)
    assert torch.allclose(one, two, atol=1e-3) and one.abs().max() > 0.1


def test_in_bf16_the_losses_agree_too(series):
    """A sharded model casts what it is given to bf16; the number of tokens must not be: 299 would become 300."""
    one, two = (
        records.load(series.folder / "07_multi_gpu" / str(n) / "tiny" / "full-s0" / "record.json") for n in (1, 2)
    )
    assert [s["loss"] for s in two.steps] == pytest.approx([s["loss"] for s in one.steps], rel=1e-3)


def test_an_adapter_is_replicated_and_equal_in_all_processes(series):
    alone, record = (
        records.load(series.folder / "07_multi_gpu" / str(n) / "tiny" / "lora-s0" / "record.json") for n in (1, 2)
    )
    one, two = record.memory["ranks"]
    assert [one[k] for k in ("parameters", "gradients", "optimizer")] == [
        two[k] for k in ("parameters", "gradients", "optimizer")
    ]
    details = {g["name"]: g["detail"] for g in record.guards}
    assert "2 processes, one device each" in details["one device"] and "all processes agree" in details
    assert [s["loss"] for s in record.steps] == pytest.approx([s["loss"] for s in alone.steps], rel=1e-3)


def test_a_process_that_fails_says_why(tmp_path):
    with pytest.raises(DistributedError, match=f"there is no model in {tmp_path}"):
        launch.launch(settings_for("tiny", model=str(tmp_path), runs_dir=str(tmp_path)), "CPU", 2)


# --- without any process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "accumulation", "among", "expected"),
    [(8, 1, 1, (8, 1)), (8, 1, 2, (4, 1)), (4, 2, 2, (4, 1)), (6, 4, 4, (6, 1)), (6, 4, 3, (2, 4))],
)
def test_rows_are_shared_out_evenly(batch, accumulation, among, expected):
    shared = share(settings_for("tiny", batch_size=batch, accumulation=accumulation), among)
    assert shared == expected and shared[0] * shared[1] * among == batch * accumulation


def test_rows_that_cannot_be_shared_are_said():
    with pytest.raises(SettingsError, match=r"8 x 1 rows .* among 3 processes; make one of the two a multiple of 3"):
        share(settings_for("tiny"), 3)


@pytest.mark.parametrize(
    ("gpus", "wanted", "expected"),
    [(0, None, ("CPU", 2)), (1, None, ("CPU", 2)), (4, None, ("GPU", 4)), (4, 2, ("GPU", 2))],
)
def test_all_gpus_or_two_processes(monkeypatch, gpus, wanted, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert devices(settings_for("tiny", devices=wanted)) == expected


@pytest.mark.parametrize(
    ("gpus", "said"), [(2, "3 GPUs were asked for, but this machine shows 2: ask"), (0, "has 1 cores: ask")]
)
def test_devices_that_do_not_exist_are_refused(monkeypatch, gpus, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(DistributedError, match=said):
        devices(settings_for("tiny", devices=3))


def test_more_processes_than_gpus_are_refused_inside_a_process_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(DistributedError, match="this machine shows 2"):
        distributed.start()


def test_a_shard_is_predicted_as_its_part():
    shape = SHAPES["Llama-2-7B"]
    one, four = (predict(shape, "full", batch=1, length=512, shards=n) for n in (1, 4))
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(four, part) == getattr(one, part) / 4, part
    assert four.activations == one.activations and four.cast_weights < one.cast_weights / 4


def test_cluster_files_are_shell_and_torchrun_knows_their_arguments(tmp_path):
    from torch.distributed.run import get_args_parser

    for script in CLUSTER.iterdir():
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
    assert parsed.module and parsed.training_script == "helpers.launch" and parsed.training_script_args[0] == settings
    without = subprocess.run(
        ["bash", CLUSTER / "torchrun.sh", settings], env={"PATH": given["PATH"]}, capture_output=True, text=True
    )
    assert without.returncode and "set HEAD to the name" in without.stderr
