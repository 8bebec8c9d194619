"""Run the series without a browser: each notebook in a process of its own, judged by what ran.

Every code cell was executed, none has an error, and the records that the notebook promises exist. A run that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from helpers.engine.locks import locked
from helpers.headless.display import visible
from helpers.headless.masking import mask_secrets
from helpers.headless.pages import write_index
from helpers.headless.parameters import UsageError, find_notebooks, parameters_of, parse_parameters
from helpers.headless.processes import end_processes, executing, of_run
from helpers.headless.status import Status, states
from helpers.records import now
from helpers.settings import PROFILES, ROOT, nearest, shown

PAGE_SECONDS = 60  # for the pages of a notebook that was stopped


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
    if not runs_dir.strip():
        raise UsageError("RUNS_DIR is empty: name a folder, such as runs")
    chosen = find_notebooks(notebooks)
    given = parse_parameters(parameters, chosen)
    folder = ROOT / Path(runs_dir).expanduser() / profile
    with locked(folder, UsageError):
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
    signals: list[str] = field(default_factory=list)  # those that asked for an end

    def series(self, notebooks: list[Path], fresh: bool) -> str:
        """Run the notebooks that need it, up to the first that does not pass."""
        if self.status.damaged:
            self.say(f"{self.status.file} is damaged: the notebooks that it no longer shows as passed run again")
        handled = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup, a closed terminal is no reason to stop
            handled.append(signal.SIGHUP)

        def note(number, frame) -> None:
            self.signals.append(signal.Signals(number).name)

        former, end = {number: signal.signal(number, note) for number in handled}, "ok"
        try:
            for notebook in notebooks:
                if self.signals:
                    end = "interrupted"
                elif not fresh and self.status.up_to_date(notebook, self.given(notebook)):
                    self.say(f"{notebook.stem}  passed before, nothing changed")
                else:
                    self.say(f"{notebook.stem}  running")
                    end = self.notebook(notebook)
                    self.say(f"{notebook.stem}  {outcome(self.status.entry(notebook))}")
                if end != "ok":
                    break
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        page = write_index(self.status.folder, self.profile, self.status.notebooks)
        self.say(f"{'All passed' if end == 'ok' else 'Stopped'}. Open {page}")
        return end

    def given(self, notebook: Path) -> dict:
        """The parameters that a notebook has, among those of this run: what is put into it, and noted of its run."""
        every = self.parameters | {"profile": self.profile, "runs_dir": self.runs_dir}
        return {name: every[name] for name in parameters_of(notebook) if name in every}

    def notebook(self, notebook: Path) -> str:
        """Run one notebook to its end, a limit or an interruption; note what became of it."""
        given, started, status = self.given(notebook), time.monotonic(), self.status
        status.begin(notebook, started=now(), parameters=given)
        ended: dict = {"end": "interrupted", "why": "the runner itself ended; the same command goes on from here"}
        try:
            before, former = states(notebook, given), status.records(notebook, given)
            ended = self._watch(notebook, given)
            reads = ended.pop("reads", None)
            if ended["end"] == "ok" and (missing := status.missing_records(notebook, given, former)):
                ended |= {"end": "failed", "why": f"every cell ran, but it wrote no {shown(missing[0])}", "cell": None}
            elif ended["end"] == "ok":
                ended |= {"cell": None} | (
                    {} if reads is None else {"used": status.used(notebook, given, before, reads)}
                )
        finally:
            seconds = round(time.monotonic() - started, 1)
            status.update(notebook, status=ended.pop("end"), seconds=seconds, finished=now(), **ended)
            write_index(status.folder, self.profile, status.notebooks)
        return status.entry(notebook)["status"]

    def _watch(self, notebook: Path, given: dict) -> dict:
        """Follow a notebook to its end, and say how it ended; if it has to be stopped, wait until its page is made."""
        job = {"source": str(notebook), "parameters": given, "folder": str(self.status.folder / "notebooks")}
        too_long = f"the notebook ran longer than {self.notebook_timeout:g} s (--notebook-timeout)"
        cell_too_long = f"the cell ran longer than {self.cell_timeout:g} s (--cell-timeout)"
        limits, cell, ended, signals = {too_long: time.monotonic() + self.notebook_timeout}, None, {}, 0
        with executing(job, self.status.folder) as (child, next_report):
            while True:
                over = [why for why, until in limits.items() if time.monotonic() > until]
                if over or len(self.signals) > signals:
                    if ended:  # making its page took too long, or was stopped, too
                        return ended | {"cell": cell}
                    ended = {"end": "timed out" if over else "interrupted"}
                    ended["why"] = (
                        over[0] if over else f"stopped by {self.signals[-1]}; the same command goes on from here"
                    )
                    limits, signals = {"": time.monotonic() + PAGE_SECONDS}, len(self.signals)
                    child.terminate()  # it keeps what there is, and makes a page of it
                if (report := next_report(0.5)) is None:
                    continue
                if "end" in report:
                    return {"cell": cell} | report | ended
                limits.pop(cell_too_long, None)
                if "cell" not in report:
                    self.say(f"  {notebook.stem}  making its page", passing=True)
                    continue
                limits[cell_too_long], cell = time.monotonic() + self.cell_timeout, report["cell"]
                self.status.update(notebook, **report)
                self.say(f"  {notebook.stem}  cell {cell} of {report['cells']}  {report['heading']}", passing=True)

    def say(self, line: str, passing: bool = False) -> None:
        """Write a line of progress; on a terminal, the next line takes the place of a passing one."""
        line, terminal = visible(mask_secrets(line)), sys.stdout is not None and sys.stdout.isatty()
        if self.write:
            self.write(line)
            return
        if terminal:
            line = f"\r\033[K{line[: shutil.get_terminal_size().columns - 1] if passing else line}"
        try:
            print(line, end="" if passing and terminal else "\n", flush=True)
        except (OSError, ValueError):  # whoever read it has gone, or its disk is full, which does not stop the run
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def outcome(entry: dict) -> str:
    """One line of what became of a notebook, from its entry in the status file."""
    seconds = f"{entry['seconds']:.0f} s"
    if entry["status"] == "ok":
        return f"passed in {seconds}"
    where = f" in cell {entry['cell']} of {entry['cells']}" if entry.get("cell") else ""
    why = "".join(character if character.isprintable() else " " for character in entry["why"])
    return f"{entry['status']}{where} after {seconds}: {why}"
