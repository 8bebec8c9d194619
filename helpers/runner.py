"""Run the series without a browser: ``python -m helpers.runner``, which is what ``make run-all`` calls.

Each notebook runs in its own process group with a time limit and is judged by what ran: every code cell was executed,
none has an error, and the records it promises exist. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from helpers.records import FILE_NAME, RecordError, load, now, write_atomically
from helpers.settings import _TYPES, PROFILES, ROOT, SettingsError, checked, nearest
from helpers.summary import mask_secrets, tidy, write_html, write_index

import nbformat
import psutil

NOTEBOOKS = ROOT / "notebooks"
MARK = "FINE_TUNING_RUN"  # in the environment of everything a notebook starts
SECRET_NAME = re.compile(r"token|secret|passw|api_?key|credential", re.IGNORECASE)
EXIT = {"ok": 0, "failed": 1, "timed out": 124, "interrupted": 130, "killed": 137}


class UsageError(ValueError):
    """A wrong argument; nothing was run."""


def find_notebooks(wanted: str = "") -> list[Path]:
    """The notebooks of the series in order, or those that ``wanted`` names by number or name.

    Raises:
        UsageError: for a name that matches none.
    """
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not wanted.split():
        return every
    chosen = []
    for word in wanted.replace(",", " ").split():
        match = [p for p in every if p.stem == word.removesuffix(".ipynb") or p.stem[:2] == word]
        if not match:
            raise UsageError(f"there is no notebook {word!r}; {nearest(word, [p.stem for p in every])}")
        chosen += match
    return sorted(set(chosen))


def parameters_of(notebook: Path) -> dict[str, object]:
    """Names and default values in the cell tagged ``parameters``."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            tree = ast.parse(cell.source)
            return {
                node.targets[0].id: ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
            }
    return {}


def parse_parameters(text: str, notebooks: list[Path]) -> dict[str, object]:
    """``name=value`` pairs, checked by name and type against the notebooks that will run.

    Raises:
        UsageError: names the parameter and what is expected; secret-like names are refused.
    """
    known = {name for path in notebooks for name in parameters_of(path)} - {"profile", "runs_dir"}
    values: dict[str, object] = {}
    for pair in text.split():
        name, equals, raw = pair.partition("=")
        if SECRET_NAME.search(name):
            raise UsageError(f"{name!r} looks like a secret: a parameter is saved in the notebook; use `hf auth login`")
        if not equals or not raw:
            raise UsageError(f"{mask_secrets(pair)!r} is not of the form name=value")
        if name in ("profile", "runs_dir"):
            raise UsageError(f"give {name} as make run-all {name.upper()}={raw}, not among the parameters")
        if name not in known:
            raise UsageError(f"no notebook that would run has a parameter {name!r}; {nearest(name, known)}")
        if name in values:
            raise UsageError(f"{name} is given twice")
        kind = _TYPES[name].split(" | ")[0]
        try:
            value = {"int": int, "float": float, "str": str, "bool": _boolean}[kind](raw)
        except ValueError:
            raise UsageError(f"{name} must be of type {kind}, not {mask_secrets(raw)!r}") from None
        try:
            values[name] = checked(name, value)
        except SettingsError as error:
            raise UsageError(str(error)) from None
    return values


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


@dataclass
class Options:
    """What one invocation was asked to do. Times are seconds."""

    profile: str = "small"
    parameters: dict | None = None
    runs_dir: str = "runs"
    cell_timeout: int = 3600
    notebook_timeout: int = 7200
    fresh: bool = False

    @property
    def folder(self) -> Path:
        return ROOT / self.runs_dir / self.profile


def digest(notebook: Path, options: Options) -> str:
    """Changes with anything that can change the result: the notebook, the helpers, profile, parameters, local data."""
    total = hashlib.sha256(json.dumps([options.profile, options.parameters or {}], sort_keys=True).encode())
    data = str((options.parameters or {}).get("data", ""))
    local = [ROOT / data] if data and (ROOT / data).is_file() else []
    for path in [notebook, *sorted((ROOT / "helpers").rglob("*.py")), *local]:
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


class Run:
    """One invocation over an output folder: state, status file, and the child that is running."""

    def __init__(self, options: Options, say=print):
        self.options, self.say = options, say
        self.status_file = options.folder / "status.json"
        self.status: dict = {"profile": options.profile, "notebooks": {}}
        if self.status_file.is_file() and not options.fresh:
            try:
                self.status = json.loads(self.status_file.read_text(encoding="utf-8"))
            except json.JSONDecodeError:
                say(f"{self.status_file} is damaged: starting over")
        self.stopped: str | None = None
        self.terminal = sys.stdout.isatty()

    # --- the lock and the signals -------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        import fcntl

        self.options.folder.mkdir(parents=True, exist_ok=True)
        self.lock = open(self.options.folder / ".lock", "w", encoding="utf-8")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.lock.close()
            raise UsageError(
                f"another run is using {self.options.folder}: wait for it, or choose another RUNS_DIR"
            ) from None
        self.handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.lock.close()

    def _stop(self, number, frame) -> None:
        self.stopped = signal.Signals(number).name

    # --- one notebook ---------------------------------------------------------------------------------------------

    def entry(self, notebook: Path) -> dict:
        return self.status["notebooks"].get(notebook.stem, {})

    def up_to_date(self, notebook: Path) -> bool:
        """Whether the last run of this notebook still stands: same inputs, and later than those before it."""
        entry = self.entry(notebook)
        earlier = [self.entry(p).get("finished") or "" for p in find_notebooks() if p.stem < notebook.stem]
        return (
            entry.get("status") == "ok"
            and entry.get("digest") == digest(notebook, self.options)
            and self.target(notebook).is_file()
            and entry["finished"] >= max(earlier, default="")
            and not self._missing_records(notebook)
        )

    def target(self, notebook: Path) -> Path:
        return self.options.folder / "notebooks" / notebook.name

    def _update(self, notebook: Path, **fields) -> None:
        self.status["notebooks"].setdefault(notebook.stem, {}).update(fields)
        write_atomically(self.status_file, json.dumps(self.status, indent=1))

    def execute(self, notebook: Path) -> str:
        """Run one notebook to its end, a limit or an interruption, judge it, and write its pages."""
        options, target = self.options, self.target(notebook)
        target.parent.mkdir(parents=True, exist_ok=True)
        own = parameters_of(notebook)
        given = {k: v for k, v in (options.parameters or {}).items() if k in own}
        given |= {k: v for k, v in (("profile", options.profile), ("runs_dir", options.runs_dir)) if k in own}
        begun, started = now(), time.monotonic()
        self.status["notebooks"].pop(notebook.stem, None)
        self._update(notebook, status="running", started=begun, digest=digest(notebook, options), parameters=given)
        with tempfile.TemporaryDirectory() as scratch:
            part = Path(scratch) / notebook.name
            job = Path(scratch) / "job.json"
            job.write_text(json.dumps({
                "source": str(notebook), "target": str(part), "parameters": given, "cwd": str(NOTEBOOKS),
                "cell_timeout": options.cell_timeout,
            }), encoding="utf-8")  # fmt: skip
            end, why = self._watch(notebook, job, started + options.notebook_timeout)
            if part.is_file():
                tidy(part)
                write_atomically(target, part.read_text(encoding="utf-8"))
        if end == "ok":
            end, why = self._judge(notebook, begun)
        seconds = round(time.monotonic() - started, 1)
        self._update(notebook, status=end, why=mask_secrets(why or "") or None, seconds=seconds, finished=now())
        if target.is_file():
            write_html(target)
        write_index(options.folder, self.status)
        return end

    def _watch(self, notebook: Path, job: Path, deadline: float) -> tuple[str, str | None]:
        mark = uuid.uuid4().hex
        child = subprocess.Popen(
            [sys.executable, "-m", "helpers.execute", str(job)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL, start_new_session=True, text=True, env=os.environ | {MARK: mark},
        )  # fmt: skip
        end, why = "killed", "the process that ran the notebook ended without a word"
        kernel_seen, kernel_gone = False, None
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(child.stdout, selectors.EVENT_READ)
                while True:
                    if self.stopped:
                        return "interrupted", f"stopped by {self.stopped}"
                    if time.monotonic() > deadline:
                        return "timed out", f"the notebook ran longer than {self.options.notebook_timeout} s"
                    if not ready.select(timeout=0.5):  # a child that outlives its kernel can keep papermill waiting
                        if kernel_runs(child):
                            kernel_seen, kernel_gone = True, None
                        elif kernel_seen:
                            kernel_gone = kernel_gone or time.monotonic()
                            if time.monotonic() - kernel_gone > 5:
                                return "killed", "the kernel died: the machine may have run out of memory"
                        continue
                    line = child.stdout.readline()
                    if not line:
                        return end, why
                    told = json.loads(line)
                    if "end" in told:
                        end, why = told["end"], told.get("why")
                        self._update(notebook, peak=told.get("peak"))
                    else:
                        self._update(notebook, cell=told["cell"], cells=told["cells"], heading=told["heading"])
                        self._progress(notebook, told)
        finally:
            reap(child, mark)
            if self.terminal:
                print("\r\033[K", end="")

    def _progress(self, notebook: Path, told: dict) -> None:
        line = f"  {notebook.stem}  cell {told['cell']} of {told['cells']}  {told['heading']}"
        if self.terminal:
            print(f"\r\033[K{line[:110]}", end="", flush=True)
        else:
            self.say(line)

    def _judge(self, notebook: Path, begun: str) -> tuple[str, str | None]:
        cells = [c for c in nbformat.read(self.target(notebook), as_version=4).cells if c.cell_type == "code"]
        for number, cell in enumerate(cells, 1):
            if any(output.output_type == "error" for output in cell.outputs):
                return "failed", f"code cell {number} has an error"
            if cell.execution_count is None and cell.source.strip():
                return "failed", f"code cell {number} was never run: a cell before it ended the kernel"
        missing = self._missing_records(notebook, begun)
        return ("failed", f"it wrote no {missing[0]}") if missing else ("ok", None)

    def _missing_records(self, notebook: Path, since: str = "") -> list[str]:
        """Records that the notebook promises in its metadata and that are absent, damaged or older."""
        promised = nbformat.read(notebook, as_version=4).metadata.get("fine_tuning", {}).get("records", [])
        seed = (self.options.parameters or {}).get("seed", PROFILES[self.options.profile]["seed"])
        missing = []
        for method in promised:
            path = self.options.folder / f"{method}-s{seed}" / FILE_NAME
            try:
                if load(path).finished < since:
                    missing.append(str(path))
            except RecordError:
                missing.append(str(path))
        return missing


def kernel_runs(child: subprocess.Popen) -> bool:
    """Whether the notebook's kernel, a child of the process that runs papermill, is alive."""
    try:
        return any(
            "ipykernel" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
            for process in psutil.Process(child.pid).children()
        )
    except psutil.Error:
        return False


def reap(child: subprocess.Popen, mark: str) -> None:
    """End a child, its kernel and whatever those started, also what was moved to another process group."""

    def marked() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    processes = marked()
    for process in processes:
        try:
            process.terminate()
        except psutil.Error:
            continue
    _, alive = psutil.wait_procs(processes, timeout=3)
    for process in {*alive, *marked()}:
        try:
            process.kill()
        except psutil.Error:
            continue
    child.wait(timeout=10)


def run_series(notebooks: list[Path], options: Options, say=print) -> str:
    """Run notebooks in order and stop at the first that does not pass.

    Returns:
        "ok", "failed", "timed out", "interrupted" or "killed".
    """
    with Run(options, say) as run:
        for notebook in notebooks:
            if run.up_to_date(notebook):
                say(f"{notebook.stem}  passed before, nothing changed")
                continue
            say(f"{notebook.stem}  running")
            end = run.execute(notebook)
            entry = run.entry(notebook)
            if end != "ok":
                where = f" in cell {entry['cell']} of {entry['cells']}" if entry.get("cell") else ""
                say(f"{notebook.stem}  {end}{where} after {entry['seconds']:.0f} s: {entry['why']}")
                break
            say(f"{notebook.stem}  passed in {entry['seconds']:.0f} s")
        else:
            end = "ok"
        say(f"{'All passed' if end == 'ok' else 'Stopped'}. Open {write_index(options.folder, run.status)}")
        return end


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make run-all", description="Run the notebooks without a browser.")
    parser.add_argument("--profile", default="small", help=f"one of {', '.join(PROFILES)}")
    parser.add_argument("--notebooks", default="", help="numbers or names, such as '00 01 02'; default: all")
    parser.add_argument("--params", default="", help="parameters for the notebooks, such as 'max_steps=5 seed=1'")
    parser.add_argument("--runs-dir", default="runs", help="where results go; relative to the repository")
    parser.add_argument("--cell-timeout", type=int, default=3600, help="seconds for one cell")
    parser.add_argument("--notebook-timeout", type=int, default=7200, help="seconds for one notebook")
    parser.add_argument("--fresh", action="store_true", help="run everything again")
    given = parser.parse_args(arguments)
    try:
        if given.profile not in PROFILES:
            raise UsageError(f"there is no profile {given.profile!r}; {nearest(given.profile, PROFILES)}")
        notebooks = find_notebooks(given.notebooks)
        options = Options(
            given.profile, parse_parameters(given.params, notebooks), given.runs_dir or "runs", given.cell_timeout,
            given.notebook_timeout, given.fresh,
        )  # fmt: skip
        return EXIT[run_series(notebooks, options)]
    except (UsageError, RecordError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
