"""How results look in a notebook and on its pages: text left and numbers right, figures described in words for a screen
reader, and characters that nobody sees written out."""

from __future__ import annotations

import re
import sys
import traceback
from html import escape

_ROW = re.compile(r"<tr.*?</tr>", re.DOTALL)
_VALUE = re.compile(r"<td[^>]*>(.*?)</td>", re.DOTALL)
_NUMBER = re.compile(r"\W{0,2}\d.{0,18}")  # and a few characters: a unit, an interval
_EMPTY = ("", "NaN", "nan")
# what would show a line in another order than it has, and the whole of a line that shows nothing
_UNSEEN = re.compile(
    "[\u202a-\u202e\u2066-\u2069]|^[ \\t\\r\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\u00ad\u180e\u3164]+$",
    re.MULTILINE,
)
MANY = 8  # bars or points that are read out one by one; of more, the ends and the extremes


def visible(text: str) -> str:
    """A text in which each line that shows nothing is written out, as in ``\\u200b``, and none is shown in another order."""
    return text if text.isascii() else _UNSEEN.sub(lambda m: m[0].encode("ascii", "backslashreplace").decode(), text)


def align(table: str) -> str:
    """The HTML of a table with the columns that are mostly text and the names of its rows aligned to the left."""
    rows = [[value.strip() for value in _VALUE.findall(row)] for row in _ROW.findall(table)]
    words = [_is_text(column) for column in zip(*filter(None, rows), strict=False)]  # a cell may hold a table

    def aligned(row: re.Match) -> str:
        if "colspan" in row[0]:
            return row[0]
        names = len(re.findall(r"<th\b", row[0])) - ("<td" not in row[0]) * len(words)
        left = iter([True] * names + words)
        return re.sub(r"<t[dh]\b", lambda c: c[0] + ' style="text-align: left"' * next(left, False), row[0])

    return _ROW.sub(aligned, table)


def _is_text(column: tuple[str, ...]) -> bool:
    filled = [value for value in column if value not in _EMPTY]
    return 3 * len([value for value in filled if _NUMBER.fullmatch(value)]) < 2 * len(filled)


def table_to_html(table) -> str:
    """A pandas table, plain or styled, as HTML."""
    page = align(table._repr_html_()).replace('<table id="T_', '<table class="dataframe" id="T_')
    return re.sub(r"(?<=>)[^<>]+(?=</td>)", lambda value: visible(value[0]), page)


def describe(figure) -> str:
    """One paragraph a panel: title, axes, each line's course, each bar's value, and the words written on it."""
    titles = [f"{figure.get_suptitle()}."] if figure.get_suptitle() else []
    return " ".join([*titles, *(_panel(axes) for axes in figure.axes)])


def _panel(axes) -> str:
    if axes.get_label() == "<colorbar>":
        return f"Shades: {', '.join(tick.get_text() for tick in axes.get_yticklabels())}."
    words = [axes.get_title()]
    for name, axis in (("across", axes.xaxis), ("up", axes.yaxis)):
        if label := axis.get_label_text():
            words.append(f"{name}: {label}{' (logarithmic)' if axis.get_scale() == 'log' else ''}")
    words += [_line(line) for line in axes.lines if not line.get_label().startswith("_")]
    words += [_bars(axes, bars) for bars in axes.containers if hasattr(bars, "datavalues")]
    words += [f"an image of {' by '.join(map(str, image.get_array().shape[:2]))} cells" for image in axes.images]
    words += [" ".join(text.get_text().split()) for text in axes.texts]
    return "; ".join(filter(None, words)) + "."


def _line(line) -> str:
    points = [f"{_number(x)}: {_number(y)}" for x, y in zip(*line.get_data(orig=True), strict=True)]
    if len(points) > MANY:
        values = line.get_ydata()
        points = [f"from {points[0]} to {points[-1]}, between {_number(min(values))} and {_number(max(values))}"]
    return f"{line.get_label()}, {', '.join(points)}"


def _bars(axes, bars) -> str:
    lying, heights = bars.orientation == "horizontal", list(bars.datavalues)
    ticks = axes.get_yticklabels() if lying else axes.get_xticklabels()
    names = {round(tick.get_position()[lying], 6): tick.get_text() for tick in ticks}
    middles = [bar.get_center()[int(lying)] for bar in bars.patches]
    values = [f"{names.get(round(m, 6)) or _number(m)}: {_number(v)}" for m, v in zip(middles, heights, strict=True)]
    if len(values) > MANY:
        values = [f"{len(values)} bars, the longest at {values[heights.index(max(heights))]}"]
    return ", ".join([bars.get_label()] * (not bars.get_label().startswith("_")) + values)


def _number(value) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"  # or the name of a category


def figure_to_html(figure) -> str:
    """The figure as a picture with its description."""
    from IPython.core.pylabtools import print_figure

    return f'<img alt="{escape(describe(figure))}" src="data:image/png;base64,{print_figure(figure, base64=True)}">'


STOPPED = "you stopped this cell. What earlier cells made is still there: run this cell again, or go on with the next"
RESTARTED = "If an earlier cell makes it, run that one first; after a restart of the kernel, choose Run, Run All Above Selected Cell"


def show_error(shell, kind: type[BaseException], error: BaseException, trace, tb_offset=None) -> None:
    """Show an error of these helpers, the stop button and a name that no cell has made as one sentence; others as usual."""
    *_, (frame, line) = traceback.walk_tb(trace)
    if issubclass(kind, KeyboardInterrupt):
        said = f"Stopped: {str(error) or STOPPED}"
    elif kind is NameError and frame.f_globals is shell.user_ns:
        said = f"NameError: {error}, in line {line} of this cell. {RESTARTED}"
    elif kind.__module__.partition(".")[0] == "helpers":
        said = f"{kind.__name__}: {error}"
    else:
        return shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
    error._render_traceback_ = lambda: [said]
    shell.showtraceback((kind, error, trace))


def switch_on() -> None:
    """Show tables, figures and errors so in the notebook that this kernel runs."""
    from IPython import get_ipython

    def describe_figures(*_) -> None:  # pyplot, when it loads, would drop a formatter that is set for the class
        if "matplotlib.figure" in sys.modules:
            sys.modules["matplotlib.figure"].Figure._repr_html_ = figure_to_html

    if shell := get_ipython():
        shell.set_custom_exc((Exception, KeyboardInterrupt), show_error)
        formatter = shell.display_formatter.formatters["text/html"]
        for module, name in (("pandas", "DataFrame"), ("pandas.io.formats.style", "Styler")):
            formatter.for_type_by_name(module, name, table_to_html)
        shell.events.register("post_execute", describe_figures)
