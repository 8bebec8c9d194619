"""Base models as loaded: anew each time, every file and every size checked."""

import json

from helpers.device import plan
from helpers.models import adapter_config, finished_folder, load_adapter, load_base, load_tokenizer
from helpers.settings import settings_for
from helpers.sources import ModelError, resolve
from helpers.sources import base_models as sources
from helpers.training import train
from tests.shared import flip

import pytest
import torch
from peft import get_peft_model


def test_the_base_is_read_anew_each_time(tiny):
    first, second = load_base(resolve(tiny)), load_base(resolve(tiny))
    with torch.no_grad():
        first.model.norm.weight.zero_()
    assert second.model.norm.weight.abs().sum() > 0


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_are_loaded_in_the_precision_of_the_arithmetic(method):
    assert load_base(resolve(settings_for("tiny", method)), "bf16").dtype == torch.bfloat16
    assert load_base(resolve(settings_for("tiny", method)), "fp32").dtype == torch.float32


def test_a_model_without_a_chat_template_is_refused(copied, tiny):
    (copied / "chat_template.jinja").unlink()
    (copied / sources.MANIFEST).unlink()
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(resolve(tiny.change(model=str(copied))))


@pytest.mark.parametrize(("method", "words"), [
    ("lora", "02_lora_train"), ("full", "03_full_train"), ("qlora", "06_qlora"), ("grpo", "11_after_sft"),
    ("dpo", "11_after_sft"), ("dora", "notebooks/cluster/train.py"), ("rslora", "notebooks/cluster/train.py"),
])  # fmt: skip
def test_a_run_that_is_missing_is_made_by_what_the_message_names(tmp_path, method, words):
    with pytest.raises(ModelError, match=f"no finished {method} run .*{words}"):
        finished_folder(settings_for("tiny", method, runs_dir=str(tmp_path)))


def test_a_folder_without_an_adapter_says_which_notebook_makes_it(tmp_path, tiny):
    with pytest.raises(ModelError, match="run 02_lora_train"):
        load_adapter(load_base(resolve(tiny)), resolve(tiny), tmp_path)


def test_a_model_without_a_padding_token_trains_with_every_eos_supervised(copied, tiny, data):
    """A model whose tokenizer has no padding token trains all the same, and every EOS stays supervised."""
    kept = json.loads((copied / "tokenizer_config.json").read_text())
    kept.pop("pad_token")
    (copied / "tokenizer_config.json").write_text(json.dumps(kept))
    (copied / sources.MANIFEST).unlink()
    settings = tiny.change(model=str(copied), max_steps=4, runs_dir=str(copied.parent / "runs"))
    assert load_tokenizer(resolve(settings)).pad_token is not None
    assert "EOS in the batch" in {g["name"] for g in train(settings, data).record.guards}


def test_an_adapter_changes_its_base_in_place_and_can_be_switched_off(tiny, data):
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


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(copied, tiny):
    tokenizer = load_tokenizer(resolve(tiny.change(model=str(copied))))
    tokenizer.add_tokens([f"<extra{n}>" for n in range(5)])
    tokenizer.save_pretrained(copied)
    (copied / sources.MANIFEST).unlink()
    with pytest.raises(ModelError, match="knows 517 tokens, the model only 512"):
        load_base(resolve(tiny.change(model=str(copied))))


def test_damaged_weights_of_a_base_are_named(copied, tiny):
    flip(copied / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing or damaged"):
        load_base(resolve(tiny.change(model=str(copied))))


def test_a_missing_file_of_a_base_is_named(copied, tiny):
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing or damaged"):
        load_base(resolve(tiny.change(model=str(copied))))


def test_a_folder_without_hashes_is_still_checked_for_missing_weights(copied, tiny):
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
