"""Faults of a training, injected one by one: rows 14 to 30, 38 and 40 of the forty that this project answers for."""

import copy
import json
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

from helpers import guards
from helpers.batches import training_order
from helpers.device import Device, plan
from helpers.engine import preflight, trainer
from helpers.engine.checkpoints import SEAL, WEIGHTS, Checkpoints, conditions
from helpers.engine.preflight import TrainingError
from helpers.engine.trainer import Steps, Trainer
from helpers.guards import GuardError
from helpers.models import adapter_config, load_adapter, load_base, load_saved, load_tokenizer, save_adapter, save_model
from helpers.settings import ROOT, settings_for
from helpers.sources import ModelError, resolve
from helpers.sources import base_models as sources
from helpers.training import train

import pytest
import torch
from peft import get_peft_model
from transformers import DataCollatorForLanguageModeling

SHORT = {"max_steps": 12, "save_steps": 4, "dropout": 0.1}  # dropout, so that random states count
MI300X = Device("rocm", "AMD Instinct MI300X", "gfx942", 8, 192 * 10**9, 100 * 10**9, "ROCm 7.1", bf16=True)


def losses(trained) -> list[float]:
    return [s["loss"] for s in trained.record.steps]


def stop_after(monkeypatch, step: int) -> None:
    """Let the reader interrupt the cell after a step has been logged."""
    real = Steps.on_log

    def on_log(self, args, state, control, **more):
        real(self, args, state, control, **more)
        if state.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Steps, "on_log", on_log)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, data):
    """A run that nothing interrupts and that keeps no checkpoints: what every resumed run must equal."""
    folder = str(tmp_path_factory.mktemp("straight"))
    return train(settings_for("tiny", "lora", runs_dir=folder, **SHORT | {"save_steps": 0}), data)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, data):
    """The folder of a run that was interrupted after step 10: checkpoints 4 and 8."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 10)
        train(settings_for("tiny", "lora", runs_dir=str(folder), **SHORT), data)
    return folder


@pytest.fixture
def unfinished(stopped, tmp_path):
    """The settings of a copy of that run, and the folder of its checkpoints."""
    shutil.copytree(stopped, tmp_path / "runs")
    settings = settings_for("tiny", "lora", runs_dir=str(tmp_path / "runs"), **SHORT)
    return settings, settings.folder / "checkpoints"


def test_an_interrupted_run_goes_on_to_the_same_losses_and_weights(unfinished, straight, data, capsys):
    settings, folder = unfinished
    assert sorted(f.name for f in folder.iterdir()) == ["checkpoint-4", "checkpoint-8"]
    resumed = train(settings, data)
    assert "going on after step 8" in capsys.readouterr().out
    assert losses(resumed) == losses(straight)
    assert resumed.record.training["resumed_from"] == 8 and straight.record.training["resumed_from"] is None
    assert resumed.record.steps[-1]["seconds"] > resumed.record.steps[7]["seconds"] > 0
    for (name, a), b in zip(resumed.model.named_parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    resumed.record.save(resumed.folder)
    assert sorted(f.name for f in resumed.folder.iterdir()) == ["adapter", "record.json"]


@pytest.mark.parametrize("method", ["full", "dora"])
def test_every_method_resumes_to_the_same_losses(tmp_path, data, method, monkeypatch):
    settings = settings_for("tiny", method, runs_dir=str(tmp_path / "a"), max_steps=12)
    expected = losses(train(settings, data))
    settings = settings.change(runs_dir=str(tmp_path / "b"), save_steps=3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 11)
        train(settings, data)
    resumed = train(settings, data)
    assert losses(resumed) == expected and resumed.record.training["resumed_from"] == 9


def test_a_run_killed_in_its_evaluation_trains_no_step_again(unfinished, straight, data, capsys):
    settings, _ = unfinished
    train(settings, data)  # and no record is saved
    again = train(settings, data)
    assert again.record.training["resumed_from"] == 12 and losses(again) == losses(straight)


KILLED_IN_THE_OPTIMIZER = """
import os, signal, sys, torch
import helpers
from helpers.data import prepare
from helpers.models import load_tokenizer
from helpers.settings import settings_for
from helpers.training import train

settings = settings_for("tiny", "lora", runs_dir=sys.argv[1], max_steps=12, save_steps=4, dropout=0.1)
real = torch.save

def save(content, file, *more, **options):
    real(content, file, *more, **options)
    if "checkpoint-8" in str(file) and "optimizer" in str(file):
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save
train(settings, prepare(settings, load_tokenizer(resolve(settings))))
"""


def test_row_14_killed_in_the_middle_of_a_checkpoint(tmp_path, straight, data, capsys):
    settings = settings_for("tiny", "lora", runs_dir=str(tmp_path), **SHORT)
    done = subprocess.run([sys.executable, "-c", KILLED_IN_THE_OPTIMIZER, str(tmp_path)], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    broken = settings.folder / "checkpoints/checkpoint-8"
    assert (broken / "optimizer.pt").is_file() and not (broken / SEAL).exists()
    resumed = train(settings, data)
    assert "passed over: checkpoint-8: its writing was never finished" in capsys.readouterr().out
    assert resumed.record.training["resumed_from"] == 4 and losses(resumed) == losses(straight)


def begin(settings, data, resume: bool = True):
    """What a training of these settings would go on from."""
    rows = [row for batch in training_order(data, settings) for row in batch]
    given = conditions(settings, rows, plan(settings, resolve(settings).shape, max(len(row.input_ids) for row in rows)))
    return Checkpoints(settings.folder, given).begin(resume)


def test_row_15_truncated_checkpoint(unfinished, straight, data, capsys):
    settings, folder = unfinished
    file = folder / "checkpoint-8" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-500])
    resumed = train(settings, data)
    out = capsys.readouterr().out
    assert f"passed over: checkpoint-8: {WEIGHTS} has " in out and "going on after step 4" in out
    assert losses(resumed) == losses(straight)
    assert resumed.record.training["passed_over"][0].startswith("checkpoint-8")


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        (WEIGHTS, lambda f: f.write_bytes(f.read_bytes()[:-64] + bytes(64)), f"{WEIGHTS} is damaged"),
        (SEAL, lambda f: f.write_bytes(f.read_bytes()[:-50]), f"{SEAL} is damaged"),
    ],
)
def test_row_15_damaged_checkpoint(unfinished, data, capsys, name, spoil, words):
    settings, folder = unfinished
    spoil(folder / "checkpoint-8" / name)
    assert begin(settings, data).step == 4
    assert f"passed over: checkpoint-8: {words}" in capsys.readouterr().out
    assert [f.name for f in folder.iterdir()] == ["checkpoint-4"]  # what is broken does not stay


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_row_16_optimizer_or_rng_file_missing(unfinished, data, capsys, name):
    settings, folder = unfinished
    (folder / "checkpoint-8" / name).unlink()
    assert begin(settings, data).step == 4
    assert f"passed over: checkpoint-8: {name} is missing" in capsys.readouterr().out


def test_row_17_resume_with_nothing_whole_there(unfinished, data, capsys):
    settings, folder = unfinished
    for step in (4, 8):
        shutil.rmtree(folder / f"checkpoint-{step}")
        (folder / f"checkpoint-{step}").mkdir()
    assert begin(settings, data) is None
    assert "no whole checkpoint is left: starting anew" in capsys.readouterr().out
    shutil.rmtree(settings.folder)
    assert begin(settings, data) is None
    assert capsys.readouterr().out == ""


def test_row_18_resume_with_a_changed_configuration(unfinished, data):
    settings, folder = unfinished
    changed = settings.change(learning_rate=0.02, rank=4)
    with pytest.raises(TrainingError) as error:
        train(changed, data)
    assert "rank was 8 and is 4; learning_rate was 0.01 and is 0.02" in str(error.value)
    assert "delete the folder (or call train(..., resume=False)) to start anew" in str(error.value)
    assert (folder / "checkpoint-8" / SEAL).is_file()  # a refusal destroys nothing
    with pytest.raises(TrainingError, match="something else: adapter's r was 8 and is 4. Set that back"):
        train(settings, data, adapter=adapter_config(settings.change(rank=4)))
    fewer = replace(data, train=data.train[:100])
    with pytest.raises(TrainingError, match="rows and their order was "):
        train(settings, fewer)
    assert begin(settings.change(save_steps=3, max_new_tokens=9), data).step == 8  # these decide no loss
    assert begin(changed, data, resume=False) is None and not any(folder.iterdir())


def test_a_finished_run_is_not_gone_on_from(unfinished, data):
    settings, folder = unfinished
    settings.folder.joinpath("record.json").write_text("{}")
    assert begin(settings, data) is None
    assert [f.name for f in settings.folder.iterdir()] == ["checkpoints"] and not any(folder.iterdir())


def test_row_19_disk_full_at_a_checkpoint(unfinished, data, monkeypatch):
    settings, folder = unfinished
    real, before = Trainer._save_optimizer_and_scheduler, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, output_dir):
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            real(self, output_dir)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(TrainingError, match="checkpoint-12 could not be written .*and was removed: free some space"):
        train(settings, data)
    assert sorted(f.name for f in folder.iterdir()) == ["checkpoint-8"]  # to go on from, and nothing partial


def test_row_19_free_space_is_checked_before(tmp_path, data, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=200_000)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: usage)
    settings = settings_for("tiny", "full", runs_dir=str(tmp_path), **SHORT)
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
def test_row_20_out_of_memory(tmp_path, data, monkeypatch, error):
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


def test_row_21_a_weight_that_is_not_a_number(tmp_path, data, monkeypatch):
    real = Trainer.training_step

    def spoiled(self, model, *more):
        if self.state.global_step == 2:
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("nan")
        return real(self, model, *more)

    monkeypatch.setattr(Trainer, "training_step", spoiled)
    settings = settings_for("tiny", "full", runs_dir=str(tmp_path), max_steps=6, save_steps=1)
    with pytest.raises(TrainingError, match="the loss at step 3 is nan: training stopped"):
        train(settings, data)
    assert not (settings.folder / "record.json").exists()
    assert not (settings.folder / "checkpoints/checkpoint-3").exists()


def test_row_23_packing_overflow(tmp_path, tiny, data):
    """Rows are packed whole: each is there once a pass, none is cut, and what is worked through is recorded."""
    settings = tiny.change(batch_tokens=256, runs_dir=str(tmp_path), max_steps=len(data.train))
    seen, batches = [], iter(training_order(data, settings))
    while len(seen) < len(data.train):
        batch = next(batches)
        assert sum(len(row.input_ids) for row in batch) <= 256
        seen += batch
    assert {id(row) for row in seen} == {id(row) for row in data.train} and len(seen) == len(data.train)
    record = train(settings.change(max_steps=4), data).record
    packed = [row for batch in training_order(data, settings)[:4] for row in batch]
    assert record.training["tokens"] == sum(len(row.input_ids) for row in packed)
    assert record.training["padded_tokens"] == 4 * 256
    with pytest.raises(TrainingError, match="more than batch_tokens = 32: rows are never cut, so raise batch_tokens"):
        train(settings.change(batch_tokens=32), data)


def test_row_25_padding_with_the_end_token(data, tokenizer):
    """With padding = EOS, transformers' own collator ignores every EOS label; ours keeps it among the labels."""
    rows = [{"input_ids": e.input_ids} for e in data.train[:4]]
    as_published = copy.deepcopy(tokenizer)
    as_published.pad_token = as_published.eos_token
    batch = DataCollatorForLanguageModeling(as_published, mlm=False)(rows)
    supervised = [replace(e, labels=e.input_ids) for e in data.train[:4]]
    with pytest.raises(GuardError, match="never learn to stop"):
        guards.batch_is_supervised(batch, supervised, as_published)


def test_row_25_no_padding_token(copied, tiny, data):
    """A model whose tokenizer has no padding token trains all the same, and every EOS stays supervised."""
    kept = json.loads((copied / "tokenizer_config.json").read_text())
    kept.pop("pad_token")
    (copied / "tokenizer_config.json").write_text(json.dumps(kept))
    (copied / sources.MANIFEST).unlink()
    settings = tiny.change(model=str(copied), max_steps=4, runs_dir=str(copied.parent / "runs"))
    assert load_tokenizer(resolve(settings)).pad_token is not None
    assert "EOS in the batch" in {g["name"] for g in train(settings, data).record.guards}


def test_row_26_a_training_cell_run_twice(tmp_path, data):
    settings = settings_for("tiny", "lora", runs_dir=str(tmp_path), max_steps=3)
    first = train(settings, data)
    first.record.save(first.folder)
    second = train(settings, data)
    assert not (second.folder / "record.json").exists()  # it comes with save(), last
    assert losses(second) == losses(first)


def test_row_27_the_base_compared_after_lora(tiny, data):
    """Attaching an adapter changes the base object in place; disable_adapter() or a fresh load give it back."""
    ids = torch.tensor([data.test[0].input_ids])
    base = load_base(resolve(tiny), "fp32").eval()
    before = base(ids).logits
    tuned = get_peft_model(base, adapter_config(tiny)).eval()
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_B" in name:
                value.fill_(0.1)
    assert not torch.allclose(base(ids).logits, before, atol=1e-3)  # "the base" is no longer the base
    with tuned.disable_adapter():
        assert torch.equal(tuned(ids).logits, before)
    assert torch.equal(load_base(resolve(tiny), "fp32").eval()(ids).logits, before)


def other_base(folder, kind: str) -> None:
    """Replace the model in a folder by one that an adapter of the tiny model would load on without a word."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if kind == "shallower":
        config.num_hidden_layers, config.layer_types = 1, None
    if kind == "larger vocabulary":
        config.vocab_size += 64
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / sources.MANIFEST).unlink()


@pytest.mark.parametrize("kind", ["same shape", "shallower", "larger vocabulary"])
def test_row_28_an_adapter_on_another_base(tmp_path, tiny, copied, kind):
    save_adapter(get_peft_model(load_base(resolve(tiny)), adapter_config(tiny)), tiny, tmp_path / "adapter")
    other_base(copied, kind)
    changed = tiny.change(model=str(copied))
    with pytest.raises(ModelError, match="was trained on tiny .*on another base it would load and answer nonsense"):
        load_adapter(load_base(resolve(changed)), resolve(changed), tmp_path / "adapter")


def test_row_29_a_token_beyond_the_vocabulary(copied, tiny):
    tokenizer = load_tokenizer(resolve(tiny.change(model=str(copied))))
    tokenizer.add_tokens([f"<extra{n}>" for n in range(5)])
    tokenizer.save_pretrained(copied)
    (copied / sources.MANIFEST).unlink()
    with pytest.raises(ModelError, match="knows 517 tokens, the model only 512"):
        load_base(resolve(tiny.change(model=str(copied))))


def flip(file) -> None:
    raw = bytearray(file.read_bytes())
    raw[-4096:] = bytes(4096)
    file.write_bytes(raw)


def test_row_30_damaged_weights_of_a_base(copied, tiny):
    flip(copied / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing or damaged"):
        load_base(resolve(tiny.change(model=str(copied))))


def test_row_30_a_missing_file_of_a_base(copied, tiny):
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing or damaged"):
        load_base(resolve(tiny.change(model=str(copied))))


def test_row_30_damaged_weights_of_what_was_saved(tmp_path, tiny, tokenizer):
    save_adapter(get_peft_model(load_base(resolve(tiny)), adapter_config(tiny)), tiny, tmp_path / "adapter")
    flip(tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing or damaged"):
        load_adapter(load_base(resolve(tiny)), resolve(tiny), tmp_path / "adapter")
    save_model(load_base(resolve(tiny)), tokenizer, tmp_path / "model")
    flip(tmp_path / "model/model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing or damaged"):
        load_saved(tmp_path / "model")


def test_row_30_a_folder_without_a_manifest(copied, tiny):
    """A reader's own folder has no hashes: what safetensors and transformers can tell is told in one sentence."""
    from safetensors.torch import load_file, save_file

    (copied / sources.MANIFEST).unlink()
    weights = load_file(copied / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack model.layers.1.mlp.up_proj.weight"):
        load_base(resolve(tiny.change(model=str(copied))))
    (copied / "model.safetensors").write_bytes((copied / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(ModelError, match="could not be read as a model"):
        load_base(resolve(tiny.change(model=str(copied))))
    (copied / "config.json").write_text("{")
    with pytest.raises(ModelError, match="could not be read as a model"):
        plan(tiny.change(model=str(copied)), resolve(tiny.change(model=str(copied))).shape)


def test_row_38_a_gpu_that_is_full_already(monkeypatch, tmp_path, tiny):
    """Free memory and its owners are shown before a training, as the vendor's tool lists them."""
    (tmp_path / "rocm-smi").write_text("#!/bin/sh\necho '4711 python 120 GB'\n")
    (tmp_path / "rocm-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    ours = plan(tiny, resolve(tiny).shape)
    small = replace(ours, device=replace(MI300X, free_memory=1000))
    with pytest.raises(TrainingError) as error:
        preflight.device_memory(small)
    for words in ("0.0 of 192.0 GB of AMD Instinct MI300X are free", "predicted", "4711 python 120 GB", "batch_size"):
        assert words in str(error.value)


def test_row_38_memory_held_by_others_is_said_where_enough_is_left(monkeypatch, tiny, capsys):
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    preflight.device_memory(replace(plan(tiny, resolve(tiny).shape), device=MI300X))
    out = capsys.readouterr().out
    assert "100.0 of 192.0 GB of AMD Instinct MI300X are free, 0.0 GB are predicted. Memory is held by" in out


def test_row_40_several_gpus_visible(monkeypatch, tiny, tmp_path):
    real = trainer.SFTConfig

    def sees_eight(**options):
        arguments = real(**options)
        arguments._n_gpu = min(8, 8 + arguments.n_gpu)  # what it finds where eight GPUs are visible
        return arguments

    monkeypatch.setattr(trainer, "SFTConfig", sees_eight)
    assert trainer._arguments(tiny, tmp_path, plan(tiny, resolve(tiny).shape)).n_gpu == 1
