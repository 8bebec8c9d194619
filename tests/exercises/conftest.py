"""The solutions of the exercises, each executed once in this process."""

import ast
import functools

from helpers.exercises import Verdict
from helpers.settings import ROOT

import matplotlib
import nbformat
import pytest


def run(path, **parameters) -> tuple[list[Verdict], dict]:
    """Execute a solution in this process, as a kernel would; the verdicts that its cells end in, and its names."""
    names, verdicts = {"__name__": "__main__"}, []
    matplotlib.use("Agg")
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        body = ast.parse(cell.source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), path.name, "exec"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= {k: v for k, v in parameters.items() if k in names}
        if last and isinstance(value := eval(compile(ast.Expression(last.value), path.name, "eval"), names), Verdict):
            verdicts.append(value)
    return verdicts, names


@pytest.fixture(scope="session")
def solved(runs):
    """What :func:`run` gives for a solution, by its name; each is executed once."""
    folder = ROOT / "notebooks" / "solutions"
    return functools.cache(lambda name: run(folder / f"{name}.ipynb", profile="tiny", runs_dir=str(runs.folder)))
