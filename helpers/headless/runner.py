"""Run the series without a browser: ``python -m helpers.headless``, which is what ``make run-all`` calls.

Each notebook runs in its own process group with a limit for each cell and for the whole, and is judged by what ran:
every code cell was executed, none has an error, and the records it promises exist. A run that was interrupted goes on
where it stopped. :func:`run_all` does the same from Python.
"""

from __future__ import annotations

import argparse
import math
import os
import queue
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from helpers.headless.display import visible
from helpers.headless.masking import mask_secrets
from helpers.headless.pages import write_index
from helpers.headless.parameters import UsageError, find_notebooks, parameters_of, parse_parameters
from helpers.headless.processes import end_processes, executing, in_use, locked, of_run
from helpers.headless.status import Status, inputs
from helpers.records import RecordError, now
from helpers.settings import PROFILES, ROOT, nearest, shown

EXIT = {"ok": 0, "failed": 1, "timed out": 124, "interrupted": 130, "killed": 137}
PAGE_SECONDS = 60  # for the pages of a notebook that was stopped
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
    if not runs_dir.strip():
        raise UsageError("RUNS_DIR is empty: name a folder, such as runs")
    folder = ROOT / runs_dir / profile
    with locked(folder):
        end_processes(of_run(folder))  # what a run left that was itself killed
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
    signals: int = 0  # how many did

    def say(self, line: str) -> None:
        """Write a line of progress; a terminal that cannot take it does not stop the run."""
        line = visible(mask_secrets(line))
        if self.write:
            self.write(line)
        else:
            self._print(f"{line}\n")

    def _print(self, text: str) -> None:
        if sys.stdout is None:
            return
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()
        except (OSError, ValueError):  # whoever read it has gone, or its disk is full
            self.write = lambda line: None
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def series(self, notebooks: list[Path], fresh: bool) -> str:
        """Run the notebooks that need it, up to the first that does not pass."""
        if self.status.damaged:
            self.say(f"{self.status.file} is damaged: the notebooks that it no longer shows as passed run again")
        handled = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup, a closed terminal is no reason to stop
            handled.append(signal.SIGHUP)
        former = {number: signal.signal(number, self._stop) for number in handled}
        end = "ok"
        try:
            for notebook in notebooks:
                if self.stopped:
                    end = "interrupted"
                    break
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
        self.stopped, self.signals = signal.Signals(number).name, self.signals + 1

    def given(self, notebook: Path) -> dict:
        """The parameters that a notebook has, among those of this run."""
        every = self.parameters | {"profile": self.profile, "runs_dir": self.runs_dir}
        return {name: every[name] for name in parameters_of(notebook) if name in every}

    def notebook(self, notebook: Path) -> str:
        """Run one notebook to its end, a limit or an interruption; note what became of it."""
        given, started, status = self.given(notebook), time.monotonic(), self.status
        status.begin(notebook, started=now(), parameters=given)
        ended: dict = {"end": "interrupted", "why": "the runner itself ended; the same command goes on from here"}
        try:
            before, former = inputs(notebook, given), status.record_hashes(notebook, given)
            ended = self._watch(notebook, given)
            reads = ended.pop("reads", None)
            if ended["end"] == "ok":
                ended |= {"cell": None} | status.used(notebook, given, before, reads)
                if missing := status.missing_records(notebook, given, former):
                    ended |= {
                        "end": "failed",
                        "why": f"every cell ran, but it wrote no {shown(missing[0])}",
                        "digest": None,
                    }
        finally:
            seconds = round(time.monotonic() - started, 1)
            status.update(notebook, status=ended.pop("end"), seconds=seconds, finished=now(), **ended)
            write_index(status.folder, self.profile, status.notebooks)
        return status.entry(notebook)["status"]

    def _watch(self, notebook: Path, given: dict) -> dict:
        """Follow a notebook to its end, and say how it ended; if it has to be stopped, wait until its page is made."""
        job = {"source": str(notebook), "parameters": given, "cwd": str(notebook.parent)}
        job["folder"] = str(self.status.folder / "notebooks")
        cell, line, cell_ends = None, f"  {notebook.stem}", math.inf
        ends, stopped = time.monotonic() + self.notebook_timeout, {}
        with executing(job, self.status.folder) as (child, reports):
            while True:
                present = time.monotonic()
                if stopped and (self.signals > stopped["signals"] or present > stopped["until"]):
                    return {
                        "end": stopped["end"],
                        "why": f"{stopped['why']} (no page: making it was stopped, too)",
                        "cell": cell,
                    }
                if not stopped and (stop := self._reason_to_stop(present > ends, present > cell_ends)):
                    stopped = dict(
                        zip(("end", "why"), stop, strict=True), signals=self.signals, until=present + PAGE_SECONDS
                    )
                    child.terminate()  # it keeps what there is, and makes a page of it
                self._draw(f"{line}  {present - ends + self.notebook_timeout:.0f} s")
                try:
                    report = reports.get(timeout=0.5)
                except queue.Empty:
                    continue
                finally:
                    self._draw("")
                if "end" in report:
                    return {"cell": cell} | report | {name: stopped[name] for name in ("end", "why") if stopped}
                if "cell" not in report:  # all cells are done
                    cell_ends, line = math.inf, f"  {notebook.stem}  making its page"
                    continue
                self.status.update(notebook, **report)
                cell, cell_ends = report["cell"], time.monotonic() + self.cell_timeout
                line = f"  {notebook.stem}  cell {cell} of {report['cells']}  {report['heading']}"
                if not self.terminal:
                    self.say(line)

    def _reason_to_stop(self, notebook_over: bool, cell_over: bool) -> tuple[str, str] | None:
        """How a notebook ends that has to be stopped, and why; None to let it run."""
        if self.stopped:
            return "interrupted", f"stopped by {self.stopped}; the same command goes on from here"
        if notebook_over:
            return "timed out", f"the notebook ran longer than {self.notebook_timeout:g} s (--notebook-timeout)"
        if cell_over:
            return "timed out", f"the cell ran longer than {self.cell_timeout:g} s (--cell-timeout)"
        return None

    @property
    def terminal(self) -> bool:
        """Whether progress goes to a terminal, where one line of it is drawn over and over."""
        return self.write is None and sys.stdout is not None and sys.stdout.isatty()

    def _draw(self, line: str) -> None:
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            self._print(f"\r\033[K{visible(mask_secrets(line))[:width]}")


def outcome(entry: dict) -> str:
    """One line of what became of a notebook, from its entry in the status file."""
    seconds = f"{entry['seconds']:.0f} s"
    if entry["status"] == "ok":
        return f"passed in {seconds}"
    where = f" in cell {entry['cell']} of {entry['cells']}" if entry.get("cell") else ""
    why = "".join(character if character.isprintable() else " " for character in entry["why"])
    return f"{entry['status']}{where} after {seconds}: {why}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.headless", description="Run the notebooks without a browser, as `make run-all` does.",
        epilog=_EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    option = parser.add_argument
    option("--profile", default="small", help=f"one of {', '.join(PROFILES)}; default: small")
    option("--notebooks", default="", help="numbers or names, such as '00 01 02'; default: all")
    option("--params", default="", help="for the notebooks, such as 'max_steps=5 seed=1'", dest="parameters")
    option("--runs-dir", default="runs", help="where results go, relative to the repository; default: runs")
    option("--cell-timeout", type=float, default=3600, help="seconds for one cell; default: 3600")
    option("--notebook-timeout", type=float, default=7200, help="seconds for one notebook; default: 7200")
    option("--fresh", action="store_true", help="run notebooks also if nothing changed since they passed")
    option("--in-use", metavar="FOLDER", help="run nothing: exit with 2 if a run is using this folder or one below it")
    given = vars(parser.parse_args(arguments))
    folder, message = given.pop("in_use"), ""
    try:
        if folder is None:
            return EXIT[run_all(**given)]
        if not (held := in_use(ROOT / folder)):
            return 0
        message = f"a run is using {shown(held[0])}: wait for it, or stop it"
    except (UsageError, RecordError) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'writing'}: {error.strerror}"
    except KeyboardInterrupt:  # before the first notebook or after the last
        return EXIT["interrupted"]
    with suppress(OSError):
        print(f"error: {mask_secrets(message)}".encode("ascii", "backslashreplace").decode(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
