"""Tables and figures as they show: text left, numbers right, and each figure with a description."""

import re
from dataclasses import replace
from itertools import combinations

from helpers import plotting
from helpers.headless import align, describe, figure_to_html, find_notebooks
from helpers.headless.display import table_to_html
from helpers.memory import GB
from helpers.records import load_reference, load_table

import matplotlib.pyplot as plt
import nbformat
import pandas
import pytest

LEFT = 'style="text-align: left"'


def columns(html: str) -> list[str]:
    """For each column, where the cells of its first row stand."""
    first = next(row for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL) if "<td" in row)
    return ["left" if LEFT in cell else "right" for cell in re.findall(r"<td[^>]*>", first)]


def test_text_goes_to_the_left_and_numbers_stay():
    frame = pandas.DataFrame({
        "count": [1, 2], "share": ["7.5 %", "-1e-05 to 3"], "size": ["1,200 MB", ""], "name": ["A", "12 apples, as he says, and two"], "run": ["none", "tiny"],
    })  # fmt: skip
    for html in (frame._repr_html_(), frame.style.hide(axis="index")._repr_html_()):
        assert columns(align(html)) == ["right"] * 3 + ["left"] * 2
        headings = re.findall(r"<th\b([^>]*)>(count|size|name)<", align(html))
        assert [LEFT in attributes for attributes, _ in headings] == [False, False, True]
        assert align(html).replace(" " + LEFT, "") == html, "nothing else changes"
    assert align(pandas.DataFrame({"a": []})._repr_html_()), "a table without rows"


def test_an_answer_of_invisible_characters_is_written_out_and_nothing_else_changes():
    frame = pandas.DataFrame({"answer": ["\u200b\u200b", "\ufeff", "a\u202eb", "Paris", "ä\u200dö", "<b>"]})
    page = table_to_html(frame)
    for shown in ("\\u200b\\u200b", "\\ufeff", "a\\u202eb", "Paris", "ä\u200dö", "&lt;b&gt;"):
        assert f">{shown}</td>" in page, shown


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.fixture(scope="module")
def trained():
    """One run of each method: further seeds are drawn like the first."""
    return [r for r in load_reference("small-cpu") if r.method != "base" and r.seed == 0]


def test_a_description_says_title_axes_course_and_values(axes, trained):
    trained = [replace(r, data={}) for r in trained]  # which do not say what each batch held: one line for each
    words = describe(plotting.loss_curves(trained, axes).figure)
    losses = [s["loss"] for s in trained[0].steps]
    ends = {r.method: sum(s["loss"] for s in r.steps[-15:]) / 15 for r in trained}  # an eighth of 120
    title = f"Training loss at the end: {', '.join(f'{method} {end:.2g}' for method, end in ends.items())}"
    assert words.startswith(f"{title}; across: step; up: training loss, nats per token (logarithmic)")
    assert f"{trained[0].method}, from 1: {losses[0]:.3g} to {len(losses)}: {ends[trained[0].method]:.3g}" in words
    axes.clear()
    assert "fp32: 1.25; bf16: 250" in describe(plotting.bars({"fp32": 1.25, "bf16": 250.0}, axes, "TFLOP/s").figure)
    axes.clear()
    parts = trained[0].memory["predicted"]
    words = describe(plotting.memory_parts({"<lora> & co": parts}, axes).figure)
    assert f"weights, <lora> & co: {parts['weights'] / GB:.3g}" in words
    page = figure_to_html(axes.figure)
    assert 'alt="Predicted: ' in page and "&lt;lora&gt; &amp; co" in page


def test_no_two_marks_of_a_figure_differ_in_colour_alone(axes, trained):
    sweep = [r for r in load_table("sweep-small")["runs"] if r["method"] != "base"]
    drawings = (
        lambda: plotting.loss_curves(trained, axes),
        lambda: plotting.sweep(sweep, axes),
        lambda: plotting.update_energy(trained, axes, "q_proj"),
        lambda: plotting.memory_parts({r.method: r.memory["predicted"] for r in trained}, axes),
        lambda: plotting.memory_timeline(trained[0], axes),
        lambda: plotting.length_histogram({"train": [20, 30], "test": [25], "validation": [40]}, 160, axes),
    )
    for draw in drawings:
        axes.clear()
        draw()
        looks = [_look(handle) for handle in axes.get_legend_handles_labels()[0]]
        assert len(looks) > 1 and all(a != b for a, b in combinations(looks, 2)), (looks, axes.get_title())


def test_figures_fit_a_large_model_with_long_rows_as_well(axes, trained):
    plotting.length_histogram({"train": list(range(60, 1900, 3)), "test": [500, 700]}, 2048, axes)
    assert len(axes.containers[0]) < 60  # bars that can be told apart
    axes.clear()
    narrow = replace(trained[0], steps=[s | {"loss": 1.7 - 0.02 * i} for i, s in enumerate(trained[0].steps[:20])])
    low, high = plotting.loss_curves([narrow], axes).get_ylim()
    assert sum(low < tick < high for tick in axes.get_yticks()) > 2
    assert all(tick == int(tick) for tick in axes.get_xticks())


def _look(handle) -> tuple:
    """How a legend's mark looks to somebody who sees no colours."""
    handle = getattr(handle, "patches", [handle])[0]
    if hasattr(handle, "get_hatch"):
        return ("surface", handle.get_hatch())
    dashes = handle._dash_pattern if handle.get_linestyle() != "None" else None
    return ("line", str(dashes), handle.get_marker())


def executed(series, notebook) -> list:
    """The outputs of a notebook of the series."""
    cells = nbformat.read(series.folder / "notebooks" / notebook.name, 4).cells
    return [output.get("data", {}) for cell in cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.mark.parametrize("notebook", find_notebooks(), ids=lambda p: p.stem)
def test_every_table_of_the_series_is_laid_out(series, notebook):
    tables = [
        data["text/html"] for data in executed(series, notebook) if 'class="dataframe"' in data.get("text/html", "")
    ]
    assert tables and all(align(page.replace(" " + LEFT, "")) == page for page in tables)


@pytest.mark.parametrize("notebook", find_notebooks(), ids=lambda p: p.stem)
def test_every_figure_of_the_series_has_its_description(series, notebook):
    for data in executed(series, notebook):
        if "image/png" in data:
            (alt,) = re.findall(r'<img alt="([^"]*)" src="data:image/png', data.get("text/html", "")) or [""]
            assert len(alt) > 20, f"alternative text {alt!r}"
