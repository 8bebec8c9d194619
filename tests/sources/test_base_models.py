"""Base models: made once, never unnoticed when damaged, and never in the place of somebody else's files."""

import json
import os

from helpers.models import merge
from helpers.sources import ModelError, base_models, check_files, check_replaceable, resolve, write_manifest
from helpers.training import train

import pytest


def test_tiny_is_small_and_the_same_each_time(tmp_path, tiny):
    base_models._make_tiny(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (resolve(tiny).folder / "model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").stat().st_size < 1e6


def test_other_weight_formats_are_not_loaded(copied, tiny):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="other weight formats are not loaded"):
        print(resolve(tiny.change(model=str(copied))).fingerprint)


def test_a_folder_without_a_model_says_so(tmp_path, tiny):
    with pytest.raises(ModelError, match=r"no model in .*holds no config\.json"):
        resolve(tiny.change(model=str(tmp_path)))


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "saved quantized, with bitsandbytes "),
        ({"quant_method": "gptq", "bits": 4}, "saved quantized, with gptq "),
        ({"quant_method": "awq", "bits": 8}, "saved quantized, with awq "),
        ({"quant_method": "fp8"}, "saved quantized, with fp8 "),
    ],
)
def test_a_quantized_checkpoint_is_named_as_such_before_anything_is_loaded(copied, tiny, saved, words, data):
    kept = json.loads((copied / "config.json").read_text()) | {"quantization_config": saved}
    (copied / "config.json").write_text(json.dumps(kept))
    (copied / base_models.MANIFEST).unlink()
    with pytest.raises(ModelError, match=f"{words}.*choose the model it was made from; the method 'qlora' quantises"):
        train(tiny.change(model=str(copied)), data)


def test_a_relative_folder_is_looked_up_from_the_repository_wherever_you_are(copied, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(base_models, "ROOT", copied.parent)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resolve(tiny.change(model=copied.name)).folder == copied
    assert resolve(tiny.change(model=f"./{copied.name}")).fingerprint == resolve(tiny).fingerprint


def test_a_model_that_needs_code_of_its_own_is_refused(copied, tiny, data):
    kept = json.loads((copied / "config.json").read_text())
    kept |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.Model"}}
    (copied / "config.json").write_text(json.dumps(kept))
    (copied / "code.py").write_text("raise SystemExit('this must never run')")
    (copied / base_models.MANIFEST).unlink()
    with pytest.raises(ModelError, match="could not be read as a model"):
        train(tiny.change(model=str(copied)), data)


def test_the_wrong_gguf_file_is_refused(tmp_path):
    file = tmp_path / base_models.SMOLLM2_GGUF
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="sha256 differs"):
        base_models.convert_gguf(file, tmp_path / "out")


def a_folder(folder):
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")


def a_folder_with_a_manifest_of_its_own(folder):
    a_folder(folder)
    (folder / "manifest.json").write_text('{"name": "a web page"}')


def one_of_this_project_with_something_added(folder):
    a_folder(folder)
    (folder / "config.json").write_text("{}")
    write_manifest(folder)
    (folder / "notes.md").write_text("mine")
    (folder / "diary.txt").rename(folder / "manifest.bak")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({"config.json": manifest["config.json"]}))


def a_link(folder):
    a_folder(folder.with_name("elsewhere"))
    folder.symlink_to(folder.with_name("elsewhere"))


def a_dangling_link(folder):
    folder.symlink_to(folder.with_name("nowhere"))


def a_file(folder):
    folder.write_text("mine")


OF_OTHERS = [a_folder, a_folder_with_a_manifest_of_its_own, one_of_this_project_with_something_added, a_link,
             a_dangling_link, a_file]  # fmt: skip


def state(folder) -> dict:
    """Everything below the folder's parent: links by their target, files by their content."""
    found = sorted(folder.parent.rglob("*"))
    return {str(f): os.readlink(f) if f.is_symlink() else f.read_bytes() if f.is_file() else None for f in found}


@pytest.mark.parametrize("make", OF_OTHERS)
def test_what_somebody_else_put_in_the_place_of_a_model_is_left_alone(tmp_path, tiny, runs, monkeypatch, make):
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    for name, replace in (("tiny", lambda f: resolve(tiny)), ("merged", lambda f: merge(runs.settings("lora"), f))):
        monkeypatch.setenv("MODELS_DIR", str(tmp_path / name))
        (tmp_path / name).mkdir()
        make(tmp_path / name / "tiny")
        before = state(tmp_path / name / "tiny")
        if make is one_of_this_project_with_something_added and name == "tiny":
            continue  # a model that is there whole, whatever lies beside it
        with pytest.raises(ModelError):
            check_replaceable(tmp_path / name / "tiny")
        with pytest.raises(ModelError, match="so it is left alone: move it away|if this project made the folder"):
            replace(tmp_path / name / "tiny")
        assert state(tmp_path / name / "tiny") == before


def test_a_merged_model_replaces_an_earlier_one_and_an_empty_folder(runs, tmp_path):
    (tmp_path / "merged").mkdir()
    for _ in range(2):
        merge(runs.settings("lora"), tmp_path / "merged")
        check_files(tmp_path / "merged")
    assert [f.name for f in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is damaged"),
        ("[]", "should hold a JSON object, not list"),
        ("null", "should hold a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"model.safetensors": 1' + "0" * 5000 + "}", "too large"),
        ('{"model.safetensors": "abc"}', "should hold file names with their sha256"),
        ('{"../../passwd": "' + "0" * 64 + '"}', "does not list model.safetensors"),
        ("{}", "does not list model.safetensors"),
        ('{"model.safetensors": "' + "0" * 64 + '"}', "is missing or damaged"),
    ],
)
def test_a_manifest_of_the_wrong_shape_vouches_for_nothing(copied, text, words):
    (copied / "manifest.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        check_files(copied)
