"""Adapters: missing, renamed, broken or pickled tensors never load silently, with or without a manifest."""

import json
import shutil

from helpers.models import BASE_FILE, load_adapter, load_base, save_adapter
from helpers.sources import MANIFEST, ModelError, resolve, write_manifest

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def adapter(runs, tmp_path):
    """A copy of a trained adapter that a test may spoil."""
    return shutil.copytree(runs.lora.folder / "adapter", tmp_path / "adapter")


def load(folder, tiny):
    base = resolve(tiny)
    return load_adapter(load_base(base, "fp32"), base, folder)


def spoil(folder, change):
    """Write the adapter's tensors again after ``change(tensors, name of one)``, and vouch for them in the manifest."""
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors, next(name for name in tensors if name.endswith("q_proj.lora_A.weight")))
    save_file(tensors, folder / "adapter_model.safetensors")
    write_manifest(folder)


def missing(tensors, name):
    del tensors[name]


def renamed(tensors, name):
    tensors[name.replace("q_proj", "query")] = tensors.pop(name)


def added(tensors, name):
    tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()


def not_a_number(tensors, name):
    tensors[name][0, 0] = float("nan")


def infinite(tensors, name):
    tensors[name][0, 0] = float("inf")


def too_narrow(tensors, name):
    tensors[name] = tensors[name][:, :-1].contiguous()


def of_another_rank(tensors, name):
    tensors[name] = tensors[name][:-1].contiguous()


def none_of_lora(tensors, name):
    tensors.clear()
    tensors["weight"] = torch.zeros(2)


WORDS = {missing: "lacks .*q_proj.lora_A.weight", renamed: "does not fit this base: it lacks", added: "holds .*layers.9",
         not_a_number: "not finite", infinite: "not finite", too_narrow: "size mismatch", of_another_rank: "size mismatch",
         none_of_lora: "says rank 8"}  # fmt: skip


@pytest.mark.parametrize("vouched", [True, False], ids=["with a manifest", "without"])
@pytest.mark.parametrize("change", WORDS)
def test_tensors_that_do_not_fit_are_refused(adapter, tiny, change, vouched):
    spoil(adapter, change)
    if not vouched:
        (adapter / MANIFEST).unlink()
        (adapter / BASE_FILE).unlink()
    with pytest.raises(ModelError, match=WORDS[change]):
        load(adapter, tiny)


def test_one_without_a_manifest_loads_as_it_was_trained(adapter, tiny, runs):
    (adapter / MANIFEST).unlink()
    (adapter / BASE_FILE).unlink()
    trained = dict(runs.lora.model.named_parameters())
    for name, weight in load(adapter, tiny).named_parameters():
        assert torch.equal(weight, trained[name].to(weight.dtype)) or "lora_" not in name


def test_pickled_weights_are_never_loaded(adapter, tiny):
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / MANIFEST).unlink()
    with pytest.raises(ModelError, match=r"adapter_model\.bin but no adapter_model\.safetensors; other formats"):
        load(adapter, tiny)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="there is no adapter in"):
        load(adapter, tiny)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": 10**9}, "says rank 1000000000, and its weights have 8"),
        ({"r": "8"}, "r should be of type int"),
        ({"r": 0}, "could not be read"),
        ({"r": 4}, "size mismatch"),
        ({"rank_pattern": {"q_proj": 10**12}}, "says rank 1000000000000, and its weights have 8"),
        ({"rank_pattern": [1]}, "could not be read"),
        ({"lora_alpha": "x"}, "could not be read"),
        ({"target_modules": 5}, "could not be read"),
        ({"target_modules": ["q_proj"]}, "does not fit this base: it holds"),
        ({"use_dora": True}, "lacks .*lora_magnitude_vector"),
        ({"peft_type": "IA3"}, "only LoRA is read"),
        ({"peft_type": None}, "peft_type should be of type str"),
        ({"task_type": "x"}, "could not be read"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_sentence(adapter, tiny, change, words):
    config = json.loads((adapter / "adapter_config.json").read_text()) | change
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / MANIFEST).unlink()
    with pytest.raises(ModelError, match=words):
        load(adapter, tiny)


@pytest.mark.parametrize("name", ["adapter_config.json", BASE_FILE])
@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 100_000, '{"r": 1' + "0" * 5000 + "}", '{"r": NaN}'])
def test_json_of_the_wrong_shape_beside_an_adapter_is_one_sentence(adapter, tiny, name, text):
    (adapter / name).write_text(text)
    (adapter / MANIFEST).unlink()
    with pytest.raises(ModelError, match=name):
        load(adapter, tiny)


def test_two_adapters_stand_side_by_side_and_the_newest_is_active(adapter, tiny, runs):
    spoil(adapter, lambda tensors, name: [tensor.neg_() for tensor in tensors.values()])
    base = resolve(tiny)
    model = load_adapter(load_base(base, "fp32"), base, runs.lora.folder / "adapter")
    model = load_adapter(model, base, adapter, "negative")
    assert model.active_adapter == "negative" and set(model.peft_config) == {"default", "negative"}
    weights = dict(model.named_parameters())
    name = next(name for name in weights if name.endswith("lora_A.default.weight"))
    assert torch.equal(weights[name], -weights[name.replace("default", "negative")])


@pytest.mark.parametrize("place", ["/another/machine/models/tiny", "somebody/a-model", ""])
def test_an_adapter_made_elsewhere_is_saved_again_without_a_word_or_a_look_at_the_hub(
    adapter, tiny, tmp_path, recwarn, monkeypatch, place
):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": place}))
    (adapter / MANIFEST).unlink()
    asked = []
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *given: asked.append(given))
    model = load(adapter, tiny)
    recwarn.clear()
    save_adapter(model, resolve(tiny), tmp_path / "again")
    assert not asked and not [w for w in recwarn if "config" in str(w.message)]
    again, before = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "again", adapter))
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in again)
