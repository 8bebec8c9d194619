"""What a run saved loads as it was trained, merges to the same numbers, and is refused on another base or damaged."""

from helpers.doctor import four_bit
from helpers.inference import logits
from helpers.memory import NF4_BYTES
from helpers.models import (
    adapter_config,
    load_adapter,
    load_base,
    load_saved,
    load_trained,
    merge,
    on_dequantised,
    save_adapter,
    save_model,
)
from helpers.settings import settings_for
from helpers.sources import ModelError, resolve
from helpers.sources import base_models as sources
from helpers.training import train
from tests.shared import flip

import pytest
import torch
from peft import get_peft_model


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
def test_an_adapter_is_refused_on_another_base(tmp_path, tiny, copied, kind):
    save_adapter(get_peft_model(load_base(resolve(tiny)), adapter_config(tiny)), resolve(tiny), tmp_path / "adapter")
    other_base(copied, kind)
    changed = tiny.change(model=str(copied))
    with pytest.raises(ModelError, match="was trained on tiny .*on another base it would load and answer nonsense"):
        load_adapter(load_base(resolve(changed)), resolve(changed), tmp_path / "adapter")


def test_damaged_files_of_a_run_are_named(tmp_path, tiny, tokenizer):
    save_adapter(get_peft_model(load_base(resolve(tiny)), adapter_config(tiny)), resolve(tiny), tmp_path / "adapter")
    flip(tmp_path / "adapter/adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is missing or damaged"):
        load_adapter(load_base(resolve(tiny)), resolve(tiny), tmp_path / "adapter")
    save_model(load_base(resolve(tiny)), tokenizer, tmp_path / "model")
    flip(tmp_path / "model/model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing or damaged"):
        load_saved(tmp_path / "model")


def test_merged_and_saved_equals_adapter_on_base(runs, tmp_path):
    settings = runs.settings("lora")
    ids = torch.tensor([runs.data.test[0].input_ids])
    apart = load_adapter(load_base(resolve(settings), "fp32"), resolve(settings), runs.lora.folder / "adapter").eval()
    expected = apart(ids).logits
    merged = (
        load_adapter(load_base(resolve(settings), "fp32"), resolve(settings), runs.lora.folder / "adapter")
        .merge_and_unload()
        .eval()
    )
    assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
    save_model(merged, runs.lora.tokenizer, tmp_path / "merged")
    loaded, tokenizer = load_saved(tmp_path / "merged")
    assert torch.equal(loaded.eval()(ids).logits, merged(ids).logits)
    assert tokenizer.chat_template == runs.lora.tokenizer.chat_template
    with apart.disable_adapter():
        assert torch.equal(apart(ids).logits, load_base(resolve(settings), "fp32").eval()(ids).logits)


def test_a_reloaded_adapter_gives_the_logits_it_was_saved_with(runs):
    settings = runs.settings("lora")
    ids = torch.tensor([runs.data.test[0].input_ids])
    again = load_trained(settings, runs.lora.record.decisions["precision"]["value"]).eval()
    assert torch.equal(again(ids).logits, runs.lora.model.eval()(ids).logits)


def test_what_was_not_trained_names_its_notebook(tmp_path, runs):
    for method, notebook in (("full", "03_full_train"), ("lora", "02_lora_train")):
        with pytest.raises(ModelError, match=f"run {notebook}"):
            load_trained(runs.settings(method).change(runs_dir=str(tmp_path)))
    with pytest.raises(ModelError, match="no saved model"):
        load_saved(tmp_path)


def test_a_qlora_adapter_is_merged_into_the_numbers_it_was_trained_on(tmp_path, data):
    settings = settings_for("tiny", "qlora", runs_dir=str(tmp_path), max_steps=10, precision="fp32")
    trained = train(settings, data)
    trained.record.save(trained.folder)
    assert four_bit.bits_per_weight(trained.model) == pytest.approx(8 * NF4_BYTES, abs=0.02)  # blocks that are not full
    ids = torch.tensor([data.test[0].input_ids])
    truth = logits(load_trained(settings, "fp32"), ids)
    right = logits(on_dequantised(settings).merge_and_unload(), ids)
    assert torch.allclose(right, truth, atol=1e-4)
    plain = load_base(resolve(settings.change(method="lora")), "fp32")
    wrong = logits(load_adapter(plain, resolve(settings), settings.folder / "adapter").merge_and_unload(), ids)
    assert (wrong - truth).abs().max() > 100 * (right - truth).abs().max()
    merge(settings, tmp_path / "merged")
    assert not list((tmp_path / "merged").glob("adapter*")) and (tmp_path / "merged/model.safetensors").is_file()
