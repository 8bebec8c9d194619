"""Where base models come from: made once, damaged never unnoticed, refused with a sentence."""

from helpers.sources import ModelError, resolve
from helpers.sources import base_models as sources

import pytest


def test_tiny_is_small_and_the_same_each_time(tmp_path, tiny):
    sources._make_tiny(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (resolve(tiny).folder / "model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").stat().st_size < 1e6


def test_other_weight_formats_are_not_loaded(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="other weight formats are not loaded"):
        sources.base_fingerprint(copied)


def test_a_folder_without_a_model_says_so(tmp_path, tiny):
    with pytest.raises(ModelError, match=r"no model in .*config\.json is not there"):
        resolve(tiny.change(model=str(tmp_path)))


def test_the_wrong_gguf_file_is_refused(tmp_path):
    file = tmp_path / sources.SMOLLM2_GGUF
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="sha256 differs"):
        sources.convert_gguf(file, tmp_path / "out")
