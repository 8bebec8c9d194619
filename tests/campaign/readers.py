"""Every JSON file that the project reads beside those of a run: how it is made, and what reads it."""

import contextlib
import copy
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers import comparison, records
from helpers.engine.checkpoints import STATE, Checkpoints
from helpers.engine.preflight import TrainingError
from helpers.engine.trainer import WEIGHTS
from helpers.models import BASE_FILE, load_adapter, load_base
from helpers.publish import report
from helpers.records import RecordError
from helpers.sources import MANIFEST, ModelError, check_files, resolve
from helpers.workshop import CatchUpError, KitError, archives
from helpers.workshop import kit as offline


@dataclass
class Reader:
    """A file, what asks for it, and the errors that are answers; ``ask`` returns whether it took the file for good."""

    file: Path
    ask: Callable[[], object]
    answers: tuple[type[Exception], ...]


def readers(runs, tiny, folder: Path) -> dict[str, Reader]:
    """One of each kind, in folders of its own."""
    adapter = shutil.copytree(runs.lora.folder / "adapter", folder / "adapter")
    bare = shutil.copytree(adapter, folder / "bare")
    (bare / MANIFEST).unlink()
    model = shutil.copytree(resolve(tiny).folder, folder / "model")
    sealed = shutil.copytree(model, folder / "sealed")
    (model / MANIFEST).unlink()
    base, weights = resolve(tiny), load_base(resolve(tiny), "fp32")

    def load(where: Path) -> Callable[[], object]:
        return lambda: load_adapter(copy.deepcopy(weights), base, where)  # a fresh one: PEFT changes it in place

    def whole_model():
        own = resolve(tiny.change(model=str(model)))
        return own.shape, load_base(own, "fp32")  # which loads the tokenizer, too

    found = {f"adapter: {n}": Reader(adapter / n, load(adapter), (ModelError,)) for n in (BASE_FILE, MANIFEST)}
    found |= {
        f"without a manifest: {n}": Reader(bare / n, load(bare), (ModelError,))
        for n in (BASE_FILE, "adapter_config.json")
    }
    for file in sorted(model.glob("*.json")):
        found[f"model: {file.name}"] = Reader(file, whole_model, (ModelError,))
    found["model: manifest.json"] = Reader(sealed / MANIFEST, lambda: check_files(sealed), (ModelError,))
    found["checkpoint"] = checkpoint(folder / "run")
    found["kit"] = kit(folder / "kit")
    found["archive"] = archive(runs, folder / "archive")
    found["report"] = packed_report(folder)
    for method in ("lora", "base"):
        found[f"record of {method}"] = record(runs, folder / f"series-{method}", method)
    return found


def checkpoint(run: Path) -> Reader:
    given = {"rate": 0.01, "rank": 8}
    steps = [{"step": n, "loss": 1 / n} for n in range(1, 5)]
    with Checkpoints(run, given).saving(steps, 0.5):
        (run / "checkpoints/checkpoint-4").mkdir(parents=True)
        (run / "checkpoints/checkpoint-4" / WEIGHTS).write_bytes(b"weights")
    file = run / "checkpoints/checkpoint-4" / STATE
    original = json.loads(file.read_text())

    def ask():
        found = Checkpoints(run, given)._newest()
        assert found is None or json.loads(file.read_text()) == original
        return found

    return Reader(file, ask, (TrainingError,))


def kit(folder: Path) -> Reader:
    folder.mkdir()
    (folder / "a").write_text("a")
    names = {"a": records.sha256(folder / "a"), "b": "0" * 64}
    (folder / "kit.json").write_text(json.dumps({"profile": "tiny", "files": names}))

    def ask():
        assert all(isinstance(fault, str) for fault in offline.faults("tiny", folder))

    return Reader(folder / "kit.json", ask, (KitError,))


def archive(runs, folder: Path) -> Reader:
    settings = runs.settings("lora")
    whole = archives.pack(settings, "lora", folder)
    with zipfile.ZipFile(whole) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    (folder / records.FILE_NAME).write_bytes(members.pop(records.FILE_NAME))

    def ask():
        with zipfile.ZipFile(whole, "w") as packed:
            for name, content in {records.FILE_NAME: (folder / records.FILE_NAME).read_bytes(), **members}.items():
                packed.writestr(name, content)
        shutil.rmtree(folder / "lora-s0", ignore_errors=True)
        archives.unpack(whole, "lora", settings, folder / "lora-s0")
        assert not records.lost_files(records.load(folder / "lora-s0"), folder / "lora-s0")

    return Reader(folder / records.FILE_NAME, ask, (CatchUpError,))


def packed_report(folder: Path) -> Reader:
    rung = {"name": "bf16", "tokens_per_second": 1000.0, "peak": 10**9}
    (folder / report.LADDER).write_text(json.dumps({"device": {"name": "a card"}, "rungs": [rung, rung]}))

    def ask():
        with zipfile.ZipFile(folder / "report.zip", "w") as packed:
            packed.write(folder / report.LADDER, report.LADDER)
        return report.table(*report.read(folder / "report.zip"))

    return Reader(folder / report.LADDER, ask, (report.ReportError,))


def record(runs, folder: Path, method: str) -> Reader:
    for name in ("base", "lora", "full"):
        (folder / f"{name}-s0").mkdir(parents=True)
        shutil.copy(getattr(runs, name).folder / "record.json", folder / f"{name}-s0")

    def ask():
        series = records.load_series(folder)
        comparison.comparability(series)
        comparison.table(series)
        for read in (comparison.conclusions, comparison.by_family, comparison.baselines, comparison.side_by_side):
            with contextlib.suppress(comparison.NotComparable):
                read(series)
        return [report.row(r) for r in series]

    return Reader(folder / f"{method}-s0/record.json", ask, (RecordError, comparison.NotComparable))
