"""Too little room on the device or the disk is said before a training, in numbers, with ways out."""

import re
import shutil
from dataclasses import replace

from helpers.device import Device, plan
from helpers.engine import preflight
from helpers.engine.preflight import TrainingError
from helpers.engine.trainer import Trainer
from helpers.settings import settings_for
from helpers.sources import resolve
from helpers.training import train

import pytest
import torch

MI300X = Device("rocm", "AMD Instinct MI300X", "gfx942", 8, 192 * 10**9, 100 * 10**9, "ROCm 7.1", bf16=True)


def test_free_disk_space_is_checked_before_training(tmp_path, data, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    settings = settings_for("tiny", "full", runs_dir=str(tmp_path), max_steps=12, save_steps=4)
    with pytest.raises(TrainingError, match=r"two checkpoints in .* would take 0.0\d GB, and 0.00 GB of that disk are"):
        train(settings, data)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 191.98 GiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"),
    ],
)
def test_out_of_memory_shows_the_predicted_split_and_three_ways_out(tmp_path, data, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(Trainer, "compute_loss", full)
    words = r"ran out of memory: .* GB were free, predicted were .*total.*batch_size.*checkpointing.*lora, then qlora"
    with pytest.raises(TrainingError, match=words):
        train(settings_for("tiny", "full", runs_dir=str(tmp_path)), data)


def test_other_errors_keep_their_own_words(tmp_path, data, monkeypatch):
    monkeypatch.setattr(Trainer, "compute_loss", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        train(settings_for("tiny", "full", runs_dir=str(tmp_path)), data)


def test_a_gpu_that_is_full_already_stops_a_training_before_it_starts(monkeypatch, tiny):
    """Free memory and its owners are shown before a training, as torch lists them."""
    monkeypatch.setattr(torch.cuda, "list_gpu_processes", lambda: "GPU:0\nprocess 4711 uses 120000.000 MB GPU memory")
    full = replace(plan(tiny, resolve(tiny).shape), device=replace(MI300X, free_memory=1000))
    with pytest.raises(TrainingError) as error:
        preflight.device_memory(full)
    for words in ("0.0 of 192.0 GB of AMD Instinct MI300X are free", "predicted", "process 4711 uses", "batch_size"):
        assert words in str(error.value)


def test_memory_held_by_others_is_reported_where_enough_is_left(monkeypatch, tiny, capsys):
    def absent():
        raise ModuleNotFoundError("no module named amdsmi")

    monkeypatch.setattr(torch.cuda, "list_gpu_processes", absent)
    preflight.device_memory(replace(plan(tiny, resolve(tiny).shape), device=MI300X))
    out = capsys.readouterr().out
    assert re.search(
        r"100.0 of 192.0 GB of AMD Instinct MI300X are free, 0\.\d GB are predicted. Memory is held by", out
    )
    assert "the other processes are not known (no module named amdsmi)" in out
