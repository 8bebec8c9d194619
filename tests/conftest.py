"""One tiny model, one training of each kind and one headless run of the series, shared by the whole session."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import shutil
from dataclasses import dataclass
from pathlib import Path

import helpers  # noqa: F401 - silences notices of the libraries before they are imported
from helpers.data import Data, prepare
from helpers.evaluation import evaluate
from helpers.models import load_tokenizer
from helpers.runner import Options, find_notebooks, run_series
from helpers.settings import Settings, settings_for
from helpers.sources import base_folder
from helpers.training import Trained, measure_base, train
from tests.hub import Hub

import pytest
from huggingface_hub.utils import close_session


@dataclass
class Runs:
    """The base and two finished tiny runs, their records saved under ``folder``."""

    folder: Path
    data: Data
    base: Trained
    lora: Trained
    full: Trained

    def settings(self, method: str) -> Settings:
        return settings_for("tiny", method, runs_dir=str(self.folder))


@pytest.fixture(scope="session")
def tiny() -> Settings:
    return settings_for("tiny")


@pytest.fixture
def copied(tmp_path, tiny):
    """A copy of the tiny model's folder that a test may spoil."""
    folder = tmp_path / "model"
    shutil.copytree(base_folder(tiny), folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub that this process uses, with an empty cache."""
    with Hub(tmp_path / "hub") as hub:
        hub.patch(monkeypatch, tmp_path / "cache")
        yield hub
    close_session()


@pytest.fixture(scope="session")
def tokenizer(tiny):
    return load_tokenizer(tiny)


@pytest.fixture(scope="session")
def data(tiny, tokenizer) -> Data:
    return prepare(tiny, tokenizer)


@pytest.fixture(scope="session")
def runs(tmp_path_factory, data) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for method in ("lora", "full"):
        settings = settings_for("tiny", method, runs_dir=str(folder))
        made[method] = train(settings, data)
        made[method].record.evaluation = evaluate(made[method].model, made[method].tokenizer, data, settings)
    made["base"] = measure_base(settings_for("tiny", runs_dir=str(folder)), data)
    for run in made.values():
        run.record.save(run.folder)
    return Runs(folder, data, **made)


@dataclass
class Series:
    """The whole series executed by the runner on the tiny profile."""

    end: str
    folder: Path
    lines: list[str]


@pytest.fixture(scope="session")
def series(tmp_path_factory) -> Series:
    folder, lines = tmp_path_factory.mktemp("series"), []
    end = run_series(find_notebooks(), Options(profile="tiny", parameters={}, runs_dir=str(folder)), lines.append)
    return Series(end, folder / "tiny", lines)
