"""Run one notebook with papermill and report each cell: the child process of helpers.headless.runner.

The job comes as one line of JSON on standard input; reports go to the file descriptor that is the only argument, one
JSON object a line. They say what happened to the cells; whether the notebook passed is judged by the runner.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading

from helpers.headless.processes import MARK, end_marked

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines

KERNEL_DIED = (
    "the kernel died: the system ended it, mostly because main memory ran out, or the cell itself did; "
    "close other programs, or take a smaller profile"
)


def headings(cells: list) -> list[str]:
    """For each cell, the text of the last markdown heading above it."""
    found, last = [], ""
    for cell in cells:
        if cell.cell_type == "markdown":
            lines = [line.lstrip("# ").strip() for line in cell.source.splitlines() if line.startswith("#")]
            last = lines[-1] if lines else last
        found.append(last)
    return found


class ReportingEngine(NBClientEngine):
    """papermill's engine, saying which code cell starts, and saving the notebook when it is told to stop."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, report, **options):
        cells = nb_man.nb.cells
        code = [i for i, cell in enumerate(cells) if cell.cell_type == "code"]
        above = headings(cells)

        def on_cell_start(cell, cell_index):
            if cell.cell_type == "code":
                report(cell=code.index(cell_index) + 1, cells=len(code), heading=above[cell_index])

        def save_and_stop(*_):
            try:
                nb_man.save()
            finally:
                os._exit(1)

        signal.signal(signal.SIGTERM, save_and_stop)
        super().execute_managed_notebook(nb_man, kernel_name, on_cell_start=on_cell_start, **options)


def main(report_to: int) -> None:
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_runner, daemon=True).start()
    with open(report_to, "w", encoding="utf-8") as channel:

        def report(**fields) -> None:
            print(json.dumps(fields), file=channel, flush=True)

        papermill_engines.register("reporting", ReportingEngine)
        end, why = "ok", None
        try:
            papermill.execute_notebook(
                job["source"], job["target"], parameters=job["parameters"], cwd=job["cwd"], kernel_name="python3",
                engine_name="reporting", report=report, progress_bar=False, autosave_cell_every=10,
            )  # fmt: skip
        except DeadKernelError:
            end, why = "killed", KERNEL_DIED
        except OSError as error:
            what = error.filename or "the executed notebook"
            end, why = "failed", f"{what} could not be written: {error.strerror}; free some space"
        except Exception as error:
            end, why = "failed", f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
        # the kernel was waited for: the largest resident memory of any child, in KiB on Linux
        report(end=end, why=why and why[:2000], peak=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def end_with_runner() -> None:
    """Wait until the runner is gone, however it died, and then leave nothing running."""
    while os.read(0, 1024):  # not sys.stdin.read(), which would hold a lock that the interpreter needs at its end
        pass
    end_marked(os.environ[MARK])
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
