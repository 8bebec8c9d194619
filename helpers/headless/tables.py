"""Tables that read well: text to the left, numbers to the right.

JupyterLab, and the pages made from executed notebooks, set every cell of a pandas table to the right.
"""

from __future__ import annotations

import re

ROW = re.compile(r"<tr.*?</tr>", re.DOTALL)
VALUE = re.compile(r"<td[^>]*>\s*(.*?)\s*</td>", re.DOTALL)
NUMBER = re.compile(r"\W{0,2}\d.{0,18}")  # and a few characters: a unit, an interval
EMPTY = ("", "NaN", "nan")


def align(table: str) -> str:
    """The HTML of a table with the columns that are mostly text and the names of its rows aligned to the left."""
    rows = [VALUE.findall(row) for row in ROW.findall(table)]
    words = [_is_text(column) for column in zip(*filter(None, rows), strict=False)]  # a cell may hold a table

    def aligned(row: re.Match) -> str:
        if "colspan" in row[0]:
            return row[0]
        names = len(re.findall(r"<th\b", row[0])) - ("<td" not in row[0]) * len(words)
        left = iter([True] * names + words)
        return re.sub(r"<t[dh]\b", lambda c: c[0] + ' style="text-align: left"' * next(left, False), row[0])

    return ROW.sub(aligned, table)


def _is_text(column: tuple[str, ...]) -> bool:
    filled = [value for value in column if value not in EMPTY]
    return 3 * len([value for value in filled if NUMBER.fullmatch(value)]) < 2 * len(filled)


def switch_on() -> None:
    """Show each table of this kernel so, and a styled one in the looks of a plain one."""
    from IPython import get_ipython

    def show(table) -> str:
        return align(table._repr_html_()).replace('<table id="T_', '<table class="dataframe" id="T_')

    if shell := get_ipython():
        formatter = shell.display_formatter.formatters["text/html"]
        for module, name in (("pandas", "DataFrame"), ("pandas.io.formats.style", "Styler")):
            formatter.for_type_by_name(module, name, show)
