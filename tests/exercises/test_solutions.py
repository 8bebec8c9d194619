"""Every exercise has a solution that its check accepts, hints that unfold, and a verdict while it is untouched."""

import re

from helpers.headless.parameters import find_notebooks
from helpers.settings import ROOT

import nbformat
import pytest

SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb"))


def code(path) -> list[str]:
    return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def checks_called(path, after: str = "") -> list[str]:
    """The checks that a notebook calls, in order; those below a heading where one is given."""
    source = "\n".join(c.source for c in nbformat.read(path, 4).cells)
    return re.findall(r"^exercises\.(\w+)\(", source.partition(after)[2] if after else source, re.MULTILINE)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_run_and_their_answers_are_right(path, solved):
    verdicts, _ = solved(path.stem)
    assert checks_called(path) and [v.state for v in verdicts] == ["right"] * len(checks_called(path)), verdicts


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda p: p.stem)
def test_solutions_solve_the_exercises_of_their_notebook(path):
    assert checks_called(ROOT / "notebooks" / path.name) == checks_called(path)
    content = nbformat.read(path, 4)
    nbformat.validate(content)
    assert all(c.outputs == [] and c.execution_count is None for c in content.cells if c.cell_type == "code")
    assert [c for c in content.cells if "parameters" in c.metadata.get("tags", [])]


def test_each_notebook_has_exercises_with_hints_that_unfold():
    assert [p.name for p in find_notebooks()] == [p.name for p in SOLUTIONS]
    for path in find_notebooks():
        text = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
        section = text.partition("\n## Exercises")[2].partition("\n## In practice")[0]
        called = len(checks_called(path, "\n## Exercises"))
        assert len(re.findall(r"^### \d\. ", section, re.M)) == called >= 2, path.name
        assert section.count("<details><summary>") == section.count("\n\n</details>") >= called, path.name


def test_an_untouched_exercise_says_so_and_stops_nothing(series):
    for path in (ROOT / "notebooks" / p.name for p in SOLUTIONS):
        executed = nbformat.read(series.folder / "notebooks" / path.name, 4)
        said = [
            output["data"]["text/plain"]
            for c in executed.cells
            if c.cell_type == "code" and re.search(r"^exercises\.", c.source, re.M)
            for output in c.outputs
            if output.output_type == "execute_result"
        ]
        assert len(said) == len(checks_called(path)) and all(s.startswith("Not answered yet: give ") for s in said), (
            said
        )
