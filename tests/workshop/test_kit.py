"""The folder for a workshop without a network; check_rehearsal.py runs the series from it with the network cut off."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from helpers.settings import ROOT
from helpers.workshop import KitError
from helpers.workshop import kit as offline

import pytest


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kit")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MODELS_DIR", offline.environment(folder)["MODELS_DIR"])
        offline.fetch("tiny", folder)
    return folder


@pytest.fixture
def kit(fetched, tmp_path):
    return shutil.copytree(fetched, tmp_path / "kit")


def test_what_was_fetched_is_listed_and_every_fault_of_the_folder_is_named(kit):
    manifest = json.loads((kit / "kit.json").read_text())
    assert "models/tiny/model.safetensors" in manifest["files"] and offline.faults("tiny", kit) == []
    assert offline.faults("small", kit) == ["it was fetched for the profile tiny, not small"]
    weights = kit / "models/tiny/model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    (kit / "models/tiny/tokenizer.json").unlink()
    assert sorted(offline.faults("tiny", kit)) == [
        f"models/tiny/{name} is missing or damaged: its sha256 is not the one in kit.json"
        for name in ("model.safetensors", "tokenizer.json")
    ]
    (kit / "kit.json").unlink()
    with pytest.raises(KitError, match="make fetch PROFILE=tiny"):
        offline.faults("tiny", kit)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "[" * 100_000, '{"profile": 1, "files": {}}', '{"profile": "tiny", "files": []}',
             '{"profile": "tiny", "files": {"a": ' + "9" * 5000 + "}}"],
)  # fmt: skip
def test_a_manifest_of_the_wrong_shape_is_one_sentence(kit, text):
    (kit / "kit.json").write_text(text)
    with pytest.raises(KitError, match="kit.json.*make fetch PROFILE=tiny"):
        offline.faults("tiny", kit)
    before = text
    with pytest.raises(KitError):
        offline.fetch("tiny", kit)
    assert (kit / "kit.json").read_text() == before, "a file that is not ours was replaced"


def test_a_folder_with_something_else_in_it_is_not_filled(tmp_path):
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(KitError, match="holds 'diary.txt', which is not part of a kit"):
        offline.fetch("tiny", tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["diary.txt"]


def test_make_reads_from_the_folder_that_fetch_filled(tmp_path):
    (tmp_path / "wheels").mkdir()
    database = subprocess.run(
        ["make", "-pn", "help", f"KIT={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    set_by_make = dict(re.findall(r"^(\w+) := (.*)$", database, re.MULTILINE))
    expected = offline.environment(tmp_path) | {"HF_HUB_OFFLINE": "1", "WHEELHOUSE": f"{tmp_path}/wheels"}
    assert expected.items() <= set_by_make.items()
    exported = set(re.findall(r"^export (\w+) :=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(offline.environment(tmp_path)) < exported


def test_wheels_that_are_not_enough_are_named(tmp_path):
    (fault,) = offline._install(tmp_path)
    assert (
        fault.startswith("the wheels are not enough for an installation: ERROR: No matching distribution")
        and "torch" in fault
    )


def test_a_rehearsal_reads_data_of_the_hub_through_a_copy_that_is_writable(kit, monkeypatch):
    (kit / "datasets").mkdir(exist_ok=True)
    (kit / "datasets/rows.arrow").write_text("rows")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(kit / "datasets"))
    monkeypatch.setattr(offline, "faults", lambda *_: [])
    monkeypatch.setattr(offline, "_cut_off", lambda folder: None)
    read = []

    def run_all(profile, name, runs_dir, say):
        place = Path(os.environ["HF_DATASETS_CACHE"])
        read.append((place.is_relative_to(kit), (place / "rows.arrow").read_text()))
        say(f"{name}  passed")
        say("All passed.")
        return "ok"

    monkeypatch.setattr(offline, "run_all", run_all)
    assert offline.rehearse("tiny", kit, "00 01") == [] and read == [(False, "rows")] * 2
