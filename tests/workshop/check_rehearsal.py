"""The rehearsal itself: the network cut off, the folder read-only, a fault named."""

import os
import shutil
import subprocess
import sys

from helpers.settings import ROOT

import pytest

pytestmark = pytest.mark.skipif(
    subprocess.run(["unshare", "--map-root-user", "--net", "--mount", "true"], capture_output=True).returncode != 0,
    reason="this account may not make a namespace without a network",
)


def offline(*arguments) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("MODELS_DIR", "HF_HUB_OFFLINE")} | {
        "PYTHONPATH": str(ROOT)
    }
    command = [sys.executable, "-m", "helpers.workshop", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_the_series_runs_from_the_folder_alone_and_without_the_model_it_says_what_fails(tmp_path):
    kit = tmp_path / "kit"
    assert offline("fetch", kit, "--profile", "tiny").returncode == 0
    done = offline("rehearse", kit, "--profile", "tiny", "--notebooks", "00 01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"without a network, and {kit} is read-only" in done.stdout and "00_setup_check  passed in" in done.stdout
    assert "This was a part: 2 of " in done.stdout and f"make rehearse PROFILE=tiny KIT={kit}" in done.stdout
    assert "All of this works from the folder." in done.stdout
    shutil.rmtree(kit / "models/tiny")
    done = offline("rehearse", kit, "--profile", "tiny", "--notebooks", "01")
    assert done.returncode == 1 and "models/tiny/model.safetensors is missing or damaged" in done.stdout
    assert "01_data" in done.stdout.partition("would have failed:")[2]
