"""Run the series without a browser: ``python -m helpers.headless.runner``, which is what ``make run-all`` calls.

Each notebook runs in its own process group with a limit for each cell and for the whole, and is judged by what ran:
every code cell was executed, none has an error, and the records it promises exist. A run that was interrupted goes on
where it stopped. :func:`run_all` does the same from Python.
"""

from __future__ import annotations

import argparse
import queue
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from helpers.headless.masking import mask_secrets
from helpers.headless.parameters import UsageError, find_notebooks, parameters_of, parse_parameters
from helpers.headless.processes import end_marked, executing, locked
from helpers.headless.status import Status, digest
from helpers.headless.summary import failing_cell, tidy, write_html, write_index
from helpers.records import RecordError, now, write_atomically
from helpers.settings import PROFILES, ROOT, nearest

import nbformat

EXIT = {"ok": 0, "failed": 1, "timed out": 124, "interrupted": 130, "killed": 137}
_EXIT_CODES = """exit codes:
  0    all notebooks passed
  1    a notebook failed
  2    wrong arguments, or a folder that is in use or cannot be written
  124  a notebook or a cell ran longer than its limit
  130  interrupted (SIGINT, SIGTERM or SIGHUP)
  137  the kernel was killed, mostly for lack of main memory"""


def run_all(
    profile: str = "small", notebooks: str = "", parameters: str | dict = "", runs_dir: str = "runs",
    cell_timeout: float = 3600, notebook_timeout: float = 7200, fresh: bool = False, say=None,
) -> str:  # fmt: skip
    """Run notebooks in order, skip those whose last run still stands, and stop at the first that does not pass.

    Call it from the main thread: while it runs, it answers SIGINT, SIGTERM and SIGHUP by stopping the notebook.

    Args:
        profile: one of :data:`helpers.settings.PROFILES`.
        notebooks: numbers or names, such as ``"00 01 02"``; empty for all.
        parameters: ``"max_steps=5 seed=1"`` or ``{"max_steps": 5, "seed": 1}``; each notebook gets those it has.
        runs_dir: where results go, in a folder named like the profile; relative to the repository.
        cell_timeout: the longest that one cell may take, in seconds.
        notebook_timeout: the longest that one notebook may take, in seconds.
        fresh: run the notebooks also if nothing changed since they passed.
        say: called with each line of progress; None prints them.

    Returns:
        "ok", "failed", "timed out", "interrupted" or "killed"; details are in ``status.json`` and ``index.html``.

    Raises:
        UsageError: for a wrong argument or a folder in use, before anything runs.
        RecordError: if the status cannot be written.
    """
    if profile not in PROFILES:
        raise UsageError(f"there is no profile {profile!r}; {nearest(profile, PROFILES)}")
    if not (cell_timeout > 0 and notebook_timeout > 0):
        raise UsageError("the limits for a cell and for a notebook are seconds, more than 0")
    chosen = find_notebooks(notebooks)
    given = parse_parameters(parameters, chosen)
    folder = ROOT / runs_dir / profile
    with locked(folder):
        end_marked(str(folder))  # what a run left that was itself killed
        run = Run(profile, given, runs_dir, cell_timeout, notebook_timeout, Status(folder, profile), say)
        return run.series(chosen, fresh)


@dataclass
class Run:
    """One invocation over a locked output folder. Times are seconds."""

    profile: str
    parameters: dict
    runs_dir: str
    cell_timeout: float
    notebook_timeout: float
    status: Status
    write: Callable[[str], None] | None
    stopped: str | None = None  # the signal that asked for an end

    @property
    def terminal(self) -> bool:
        return self.write is None and sys.stdout.isatty()

    def say(self, line: str) -> None:
        (self.write or partial(print, flush=True))(mask_secrets(line))

    def series(self, notebooks: list[Path], fresh: bool) -> str:
        if self.status.damaged:
            self.say(f"{self.status.file} is damaged: no notebook counts as passed")
        handled = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup, a closed terminal is no reason to stop
            handled.append(signal.SIGHUP)
        former = {s: signal.signal(s, self._stop) for s in handled}
        end = "ok"
        try:
            for notebook in notebooks:
                if not fresh and self.status.up_to_date(notebook, self.given(notebook)):
                    self.say(f"{notebook.stem}  passed before, nothing changed")
                    continue
                self.say(f"{notebook.stem}  running")
                end = self.notebook(notebook)
                self.say(f"{notebook.stem}  {outcome(self.status.entry(notebook))}")
                if end != "ok":
                    break
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        page = write_index(self.status.folder, self.status.profile, self.status.notebooks)
        self.say(f"{'All passed' if end == 'ok' else 'Stopped'}. Open {page}")
        return end

    def _stop(self, number, frame) -> None:
        self.stopped = signal.Signals(number).name

    def given(self, notebook: Path) -> dict:
        """The parameters that a notebook has, among those of this run."""
        every = self.parameters | {"profile": self.profile, "runs_dir": self.runs_dir}
        return {name: every[name] for name in parameters_of(notebook) if name in every}

    def notebook(self, notebook: Path) -> str:
        """Run one notebook to its end, a limit or an interruption; judge it and write its pages."""
        given, begun, started = self.given(notebook), now(), time.monotonic()
        self.status.begin(notebook, started=begun, digest=digest(notebook, given), parameters=given)
        with tempfile.TemporaryDirectory() as scratch:
            part = Path(scratch) / notebook.name
            job = {"source": str(notebook), "target": str(part), "parameters": given, "cwd": str(notebook.parent)}
            end, why, cell = self._watch(notebook, job, started)
            executed = tidy(part)
        try:
            if executed:
                write_atomically(self.status.executed(notebook), nbformat.writes(executed))
                write_html(self.status.executed(notebook))
            if end == "ok":
                end, why, cell = self.status.judge(notebook, executed, given, begun)
        except RecordError as error:
            end, why, cell = "failed", str(error), None
        shown = failing_cell(executed, cell) if executed and cell else {}
        seconds = round(time.monotonic() - started, 1)
        self.status.update(notebook, status=end, why=why, cell=cell, seconds=seconds, finished=now(), **shown)
        write_index(self.status.folder, self.profile, self.status.notebooks)
        return end

    def _watch(self, notebook: Path, job: dict, started: float) -> tuple[str, str | None, int | None]:
        """Follow a notebook to its end: "ok" if papermill saw no fault, or how it ended, why, and in which cell."""
        cell, since, line = None, 0.0, ""
        with executing(job, str(self.status.folder)) as reports:
            while True:
                running = time.monotonic() - started
                if self.stopped:
                    return "interrupted", f"stopped by {self.stopped}; the same command goes on from here", cell
                if running > self.notebook_timeout:
                    return (
                        "timed out",
                        f"the notebook ran longer than {self.notebook_timeout:g} s (--notebook-timeout)",
                        cell,
                    )
                if cell and running - since > self.cell_timeout:
                    return "timed out", f"the cell ran longer than {self.cell_timeout:g} s (--cell-timeout)", cell
                self._draw(f"{line}  {running:.0f} s")
                try:
                    told = reports.get(timeout=0.5)
                except queue.Empty:
                    continue
                finally:
                    self._draw("")
                if "end" in told:
                    self.status.update(notebook, peak=told.get("peak"))
                    return told["end"], told["why"], cell
                self.status.update(notebook, **told)
                cell, since = told["cell"], time.monotonic() - started
                line = f"  {notebook.stem}  cell {cell} of {told['cells']}  {told['heading']}"
                if not self.terminal:
                    self.say(line)

    def _draw(self, line: str) -> None:
        """Draw the one line of progress on a terminal, over the one before."""
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{mask_secrets(line)[:width]}", end="", flush=True)


def outcome(entry: dict) -> str:
    """One line of what became of a notebook, from its entry in the status file."""
    seconds = f"{entry['seconds']:.0f} s"
    if entry["status"] == "ok":
        return f"passed in {seconds}"
    where = f" in cell {entry['cell']} of {entry['cells']}" if entry.get("cell") else ""
    return f"{entry['status']}{where} after {seconds}: {entry['why']}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.headless.runner", description="Run the notebooks without a browser, as `make run-all` does.",
        epilog=_EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--profile", default="small", help=f"one of {', '.join(PROFILES)}; default: small")
    parser.add_argument("--notebooks", default="", help="numbers or names, such as '00 01 02'; default: all")
    parser.add_argument(
        "--params", default="", help="for the notebooks, such as 'max_steps=5 seed=1'", dest="parameters"
    )
    parser.add_argument(
        "--runs-dir", default="runs", help="where results go, relative to the repository; default: runs"
    )
    parser.add_argument("--cell-timeout", type=float, default=3600, help="seconds for one cell; default: 3600")
    parser.add_argument("--notebook-timeout", type=float, default=7200, help="seconds for one notebook; default: 7200")
    parser.add_argument("--fresh", action="store_true", help="run notebooks also if nothing changed since they passed")
    try:
        return EXIT[run_all(**vars(parser.parse_args(arguments)))]
    except (UsageError, RecordError) as error:
        print(f"error: {mask_secrets(str(error))}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
    except KeyboardInterrupt:  # before the first notebook or after the last
        return EXIT["interrupted"]
    return 2


if __name__ == "__main__":
    sys.exit(main())
