"""One tiny model, one training of each kind and one headless run of the series, shared by the whole session."""

import gc
import json
import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import shutil
from dataclasses import dataclass
from pathlib import Path

import helpers  # noqa: F401 - silences notices of the libraries before they are imported
from helpers.data import Data, prepare
from helpers.evaluation import evaluate
from helpers.headless import run_all
from helpers.models import load_tokenizer
from helpers.settings import ROOT, Settings, settings_for
from helpers.sources import resolve
from helpers.training import Trained, measure_base, train
from tests.hub import Hub

import nbformat
import pytest
from huggingface_hub.utils import close_session


def pytest_collection_modifyitems(items):
    """Mark what needs the executed series, and how runs of the runner end, for `make test`: about half of its time."""
    for item in items:
        if "series" in item.fixturenames or item.path.name == "test_endings.py":
            item.add_marker("series")


def pytest_collection_finish():
    """What was imported stays. Searching it for garbage takes half a second, six times in a training of two seconds."""
    gc.freeze()


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
    shutil.copytree(resolve(tiny).folder, folder)
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
    return load_tokenizer(resolve(tiny))


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
    end = run_all("tiny", runs_dir=str(folder), say=lines.append)
    return Series(end, folder / "tiny", lines)


class Book:
    """Hand-made notebooks that the runner takes for the series, with an output folder of their own."""

    PARAMETERS = 'profile = "tiny"\nseed = 0\nmax_steps = None\nlearning_rate = None\ndata = None\nruns_dir = "runs"'

    def __init__(self, folder: Path):
        self.folder, self.out, self.lines = folder / "notebooks", folder / "out/tiny", []
        self.folder.mkdir()

    def write(self, name: str, *cells: str, records=()) -> Path:
        notebook = nbformat.v4.new_notebook(cells=[
            nbformat.v4.new_code_cell(self.PARAMETERS, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_markdown_cell("## A step"),
            *map(nbformat.v4.new_code_cell, cells),
        ])  # fmt: skip
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.metadata["fine_tuning"] = {"records": list(records)}
        nbformat.write(notebook, self.folder / f"{name}.ipynb")
        return self.folder / f"{name}.ipynb"

    def run(self, **options) -> str:
        self.lines = []
        end = run_all("tiny", runs_dir=str(self.out.parent), say=self.lines.append, **options)
        print(*self.lines, sep="\n")  # pytest shows it if the test fails
        return end

    def start(self, *arguments: str, before: str = "") -> subprocess.Popen:
        """The command line over these notebooks, as a process; ``before`` is code to run in it first."""
        command = [sys.executable, "-c", self.code(before), "--profile", "tiny", "--runs-dir", str(self.out.parent)]
        return subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def code(self, before: str = "") -> str:
        """The command line over these notebooks, as a program."""
        return (
            f"import sys, pathlib, helpers.headless.parameters as p\np.NOTEBOOKS = pathlib.Path({str(self.folder)!r})\n"
            f"{before}\nfrom helpers.headless.__main__ import main\nsys.exit(main())"
        )

    def entry(self, name: str) -> dict:
        return json.loads((self.out / "status.json").read_text())["notebooks"][name]

    def page(self) -> str:
        return (self.out / "index.html").read_text()


@pytest.fixture
def book(tmp_path, monkeypatch) -> Book:
    made = Book(tmp_path)
    monkeypatch.setattr("helpers.headless.parameters.NOTEBOOKS", made.folder)
    return made
