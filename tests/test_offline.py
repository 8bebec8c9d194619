"""The folder for a workshop without a network; `tests/workshop` runs the series from it with the network cut off."""

import json
import re
import subprocess

from helpers.settings import ROOT
from helpers.workshop import kit as offline

import pytest


@pytest.fixture
def kit(tmp_path, monkeypatch):
    folder = tmp_path / "kit"
    for name in offline.environment(folder):
        monkeypatch.setenv(name, "")  # restored afterwards: fetch sets them
    offline.fetch("tiny", folder)
    return folder


def test_what_was_fetched_is_listed_and_every_fault_of_the_folder_is_named(kit):
    manifest = json.loads((kit / "kit.json").read_text())
    assert "models/tiny/model.safetensors" in manifest["files"] and offline.faults("tiny", kit) == []
    assert offline.faults("small", kit) == ["it was fetched for the profile tiny, not small"]
    weights = kit / "models/tiny/model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    (kit / "models/tiny/tokenizer.json").unlink()
    damaged, missing = sorted(offline.faults("tiny", kit))
    assert damaged == "models/tiny/model.safetensors is damaged: its sha256 is not the one in kit.json"
    assert missing == "models/tiny/tokenizer.json is missing"
    (kit / "kit.json").unlink()
    with pytest.raises(offline.KitError, match="make fetch PROFILE=tiny"):
        offline.faults("tiny", kit)


def test_make_reads_from_the_folder_that_fetch_filled(tmp_path):
    (tmp_path / "wheels").mkdir()
    database = subprocess.run(
        ["make", "-pn", "help", f"KIT={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    set_by_make = dict(re.findall(r"^(\w+) := (.*)$", database, re.MULTILINE))
    expected = offline.environment(tmp_path) | {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    assert expected.items() <= set_by_make.items()
    exported = set(re.search(r"^export MODELS_DIR (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    assert set(offline.environment(tmp_path)) - {"MODELS_DIR"} < exported
