"""Where base models come from: made once, damaged never unnoticed, refused with a sentence."""

from helpers import sources
from helpers.models import load_base
from helpers.sources import ModelError, base_folder

import pytest


def test_tiny_is_small_and_the_same_each_time(tmp_path, tiny):
    sources._make_tiny(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (base_folder(tiny) / "model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").stat().st_size < 1e6


def test_flipped_bytes_in_the_weights_are_named(copied, tiny):
    file = copied / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-4096:] = bytes(4096)
    file.write_bytes(raw)
    with pytest.raises(ModelError, match=r"model\.safetensors is missing or damaged"):
        load_base(tiny.change(model=str(copied)))


def test_a_missing_file_is_named(copied, tiny):
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing or damaged"):
        load_base(tiny.change(model=str(copied)))


def test_other_weight_formats_are_not_loaded(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="other weight formats are not loaded"):
        sources.base_fingerprint(copied)


def test_a_folder_without_a_model_says_so(tmp_path, tiny):
    with pytest.raises(ModelError, match=r"no model in .*config\.json is not there"):
        base_folder(tiny.change(model=str(tmp_path)))


def test_an_unreachable_hub_is_one_sentence(tiny):
    with pytest.raises(ModelError, match="not in the local cache and the hub gives no answer"):
        base_folder(tiny.change(model="nobody/nothing"))


def test_the_wrong_gguf_file_is_refused(tmp_path):
    file = tmp_path / sources.SMOLLM2_GGUF
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="sha256 differs"):
        sources.convert_gguf(file, tmp_path / "out")
