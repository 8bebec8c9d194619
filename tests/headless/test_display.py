"""Tables have their text on the left and their numbers on the right, in every notebook."""

import re

from helpers.headless import align, find_notebooks

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


@pytest.mark.parametrize("notebook", find_notebooks(), ids=lambda p: p.stem)
def test_every_table_of_the_series_is_laid_out(series, notebook):
    cells = nbformat.read(series.folder / "notebooks" / notebook.name, 4).cells
    outputs = [o.get("data", {}).get("text/html", "") for c in cells if c.cell_type == "code" for o in c.outputs]
    tables = [html for html in outputs if 'class="dataframe"' in html]
    assert tables and all(align(html.replace(" " + LEFT, "")) == html for html in tables)
