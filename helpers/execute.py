"""Run one notebook with papermill and report each cell on standard output, one JSON object a line.

The child process of helpers.runner: ``python -m helpers.execute JOB.json``. What it reports is what happened to the
cells; whether the notebook passed is judged by the runner from the executed file.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.engines import NBClientEngine, papermill_engines


def report(**fields) -> None:
    print(json.dumps(fields), flush=True)


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
    """papermill's engine, saying which code cell starts."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, **options):
        cells = nb_man.nb.cells
        code = [i for i, cell in enumerate(cells) if cell.cell_type == "code"]
        above, start = headings(cells), nb_man.cell_start

        def cell_start(cell, cell_index=None, **rest):
            if cell.cell_type == "code":
                report(cell=code.index(cell_index) + 1, cells=len(code), heading=above[cell_index])
            return start(cell, cell_index, **rest)

        nb_man.cell_start = cell_start
        super().execute_managed_notebook(nb_man, kernel_name, **options)


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    papermill_engines.register("reporting", ReportingEngine)
    try:
        papermill.execute_notebook(
            job["source"], job["target"], parameters=job["parameters"], engine_name="reporting",
            kernel_name="python3", cwd=job["cwd"], progress_bar=False, execution_timeout=job["cell_timeout"],
            autosave_cell_every=10,
        )  # fmt: skip
        # the kernel was waited for: the largest resident memory of any child, in KiB on Linux
        report(end="ok", peak=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
    except CellTimeoutError:
        report(end="timed out", why=f"a cell ran longer than {job['cell_timeout']} s")
    except DeadKernelError:
        report(end="killed", why="the kernel died: the machine may have run out of memory")
    except Exception as error:
        name = getattr(error, "ename", type(error).__name__)
        report(end="failed", why=f"{name}: {getattr(error, 'evalue', error)}"[:2000])


if __name__ == "__main__":
    main(sys.argv[1])
