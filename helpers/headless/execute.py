# ruff: noqa: E402 - one name is taken away before the imports that would use it
"""Run one notebook with papermill and make its pages: the child process of :mod:`helpers.headless.processes`.

The job and the reports go through the connection whose number is the only argument: each cell that starts, and at the
end what became of the notebook. All work whose cost depends on what a notebook puts out is done here, where the limits of
the runner and its signals reach it.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from helpers.headless.extension import READS
from helpers.headless.pages import failing_cell, headings, tidy, write_pages
from helpers.headless.processes import FOLDER, descendants, end_processes, ending

sys.modules["rfc3987_syntax"] = None  # jsonschema would build a grammar with it for seconds; no address is checked here
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NotebookExecutionManager
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

EXTENSION = "--IPKernelApp.extra_extensions=helpers.headless.extension"
KERNEL = "python3"
_PR_SET_CHILD_SUBREAPER = 36


class Execution(NotebookExecutionManager):
    """One notebook, from its source to its pages. papermill calls back when a cell starts and when one fails."""

    def __init__(self, job: dict, report: Callable[[dict], None]):
        self.job, self.report, self.cell, self.kernel, self.error = job, report, 0, None, None
        self.reads = tempfile.NamedTemporaryFile("r+")  # noqa: SIM115 - it lasts as long as this process
        os.environ[READS] = self.reads.name  # for the kernel
        content = load_notebook_node(job["source"])
        if job["parameters"]:
            content = parameterize_notebook(
                content, job["parameters"], comment="Given to this run", kernel_name=KERNEL, language="python"
            )
        super().__init__(content, progress_bar=False, autosave_cell_every=0)
        self.code, self.headings = [c for c in content.cells if c.cell_type == "code"], headings(content.cells)
        self.client = PapermillNotebookClient(
            self, kernel_name=KERNEL, startup_timeout=120, iopub_timeout=300, raise_on_iopub_timeout=False,
            extra_arguments=[EXTENSION], force_raise_errors=True,
        )  # fmt: skip

    def cell_start(self, cell, cell_index=None, **options) -> None:
        """Report which code cell starts, counted from 1, and under which heading."""
        super().cell_start(cell, cell_index, **options)
        self.kernel = self.client.km.provisioner.process
        if cell.cell_type == "code":
            self.cell += 1
            heading = self.headings[cell_index][:200]
            self.report({"cell": self.cell, "cells": len(self.code), "heading": heading})

    def cell_exception(self, cell, cell_index=None, exception=None, **options) -> None:
        """Keep the error of a cell; papermill runs no cell after it."""
        super().cell_exception(cell, cell_index, **options)
        self.error = exception

    def run(self) -> tuple[str, str | None]:
        """Run all cells: "ok", or how it ended, and why."""
        self.notebook_start()
        try:
            self.client.execute(cwd=str(Path(self.job["source"]).parent))
        except DeadKernelError:
            died, outputs = f"the kernel {ending(self.kernel.poll())}", self.code[self.cell - 1].outputs
            for error in (output for output in outputs if output.output_type == "error"):
                lines = "\n".join(error.traceback)
                return "failed", f"{reason(error.ename, error.evalue, lines)}; then {died}"
            return "killed", died
        except Exception as error:
            return "failed", f"the notebook could not be run: {type(error).__name__}: {error}"[:2000]
        if self.error:
            rest = ", and the cells after it never ran" if self.cell < len(self.code) else ""
            return "failed", reason(self.error.ename, self.error.evalue, self.error.traceback) + rest
        for number, cell in enumerate(self.code, 1):
            if cell.execution_count is None and cell.source.strip():
                self.cell = number
                return "failed", "it never ran: a cell before it ended the kernel"
        return "ok", None

    def finish(self, end: str, why: str | None) -> None:
        """End what the notebook started, write its pages, and report what became of it."""
        end_descendants()
        self.report({"phase": "pages"})
        content, path = tidy(self.nb), Path(self.job["folder"], Path(self.job["source"]).name)
        outcome = {"end": end, "why": why, "cell": self.cell or None, "page": False}
        if end != "ok" and self.cell:
            outcome |= failing_cell(content, self.cell)
        try:
            write_pages(content, path)
            outcome["page"] = True
        except Exception as error:
            fault = f"its page failed: {type(error).__name__}: {error}"[:2000]
            outcome |= {"end": "failed" if end == "ok" else end, "why": f"{why}; {fault}" if why else fault}
        # the kernel was waited for: the largest resident memory of any child, in KiB on Linux
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        self.report(outcome | {"peak": peak, "reads": json.loads(self.reads.read() or "null")})

    def stop(self, *_) -> None:
        """Answer SIGTERM: keep what there is, and end; a second signal ends at once."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.finish("interrupted", None)
        os._exit(0)


def reason(name: str, text: str, traceback: str) -> str:
    """What went wrong in a cell: the exception, the line that raised it where it says nothing, and a disk that is full."""
    lines = re.findall(r"-+> *\d+ (.+)", re.sub(r"\x1b\[[0-9;]*m", "", traceback[-100_000:]))
    text = text.strip() or (f"at `{lines[-1].strip()}`" if lines else "without a message")
    if "No space left" in text or "quota exceeded" in text:
        named = filter(None, map(os.environ.get, (FOLDER, "MODELS_DIR", "HF_HOME", "HF_HUB_CACHE")))
        places = {Path(place) for place in (tempfile.gettempdir(), Path.home(), Path.cwd(), *named)}
        full = sorted(str(p) for p in places if p.is_dir() and shutil.disk_usage(p).free < 100_000_000)
        text += f"; free some space in {' or '.join(full) or 'the place that it names, or in ' + os.environ[FOLDER]}"
    return f"{name}: {text}"[:2000]


def end_descendants() -> None:
    """End all that this process started or adopted, also what starts anew meanwhile; give up after some seconds."""
    until = time.monotonic() + 6
    while (processes := descendants(os.getpid())) and time.monotonic() < until:
        end_processes(processes, patience=2)


def end_with_runner(runner: Connection) -> None:
    """Wait until the runner is gone, however it died, and then leave nothing running."""
    with suppress(EOFError, OSError):
        runner.recv()
    end_descendants()
    os._exit(1)


def main(connection: int) -> None:
    """Take the job, do it, report."""
    ctypes.CDLL(None).prctl(
        _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0
    )  # to be the parent of all that loses its own, daemons included
    runner = Connection(connection)
    execution = Execution(runner.recv(), runner.send)
    threading.Thread(target=end_with_runner, args=[runner], daemon=True).start()
    signal.signal(signal.SIGTERM, execution.stop)
    end, why = execution.run()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    execution.finish(end, why)


if __name__ == "__main__":
    main(int(sys.argv[1]))
