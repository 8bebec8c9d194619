"""Alternative text for figures: what a figure shows, in words computed from what was drawn on it.

``helpers.plotting`` switches it on. A figure then shows as an ``<img alt="...">`` in JupyterLab, in the pages that
``make run-all`` writes, on the site and on the slides, so that a screen reader has something to read.
"""

from __future__ import annotations

from html import escape

from IPython.core.pylabtools import print_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FEW = 8  # bars or points that are read out one by one; of more, the ends and the extremes


def describe(figure: Figure) -> str:
    """One paragraph a panel: title, axes, each line's course, each bar's value, and the words written on it."""
    titles = [f"{figure.get_suptitle()}."] if figure.get_suptitle() else []
    return " ".join([*titles, *(_panel(axes) for axes in figure.axes)])


def _panel(axes: Axes) -> str:
    if axes.get_label() == "<colorbar>":
        return f"Shades: {', '.join(tick.get_text() for tick in axes.get_yticklabels())}."
    said = [axes.get_title()]
    for way, label, scale in (
        ("across", axes.get_xlabel(), axes.get_xscale()),
        ("up", axes.get_ylabel(), axes.get_yscale()),
    ):
        if label:
            said.append(f"{way}: {label}{' (logarithmic)' if scale == 'log' else ''}")
    said += [_line(line) for line in axes.lines if not line.get_label().startswith("_")]
    said += [_bars(axes, bars) for bars in axes.containers if hasattr(bars, "datavalues")]
    said += [f"an image of {' by '.join(map(str, i.get_array().shape[:2]))} cells" for i in axes.images]
    said += [" ".join(text.get_text().split()) for text in axes.texts]
    return "; ".join(part for part in said if part) + "."


def _line(line) -> str:
    points = [f"{_number(x)}: {_number(y)}" for x, y in zip(*line.get_data(orig=True), strict=True)]
    if len(points) > FEW:
        values = line.get_ydata()
        points = [f"from {points[0]} to {points[-1]}, between {_number(min(values))} and {_number(max(values))}"]
    return f"{line.get_label()}, {', '.join(points)}"


def _bars(axes: Axes, bars) -> str:
    lying = bars.orientation == "horizontal"
    ticks = axes.get_yticklabels() if lying else axes.get_xticklabels()
    names = {round(tick.get_position()[lying], 6): tick.get_text() for tick in ticks}
    middles = [b.get_y() + b.get_height() / 2 if lying else b.get_x() + b.get_width() / 2 for b in bars.patches]
    values = [
        f"{names.get(round(m, 6)) or _number(m)}: {_number(v)}" for m, v in zip(middles, bars.datavalues, strict=True)
    ]
    if len(values) > FEW:
        values = [f"{len(values)} bars, the longest at {values[list(bars.datavalues).index(max(bars.datavalues))]}"]
    label = "" if bars.get_label().startswith("_") else f"{bars.get_label()}, "
    return label + ", ".join(values)


def _number(value) -> str:
    try:
        return f"{value:.3g}"
    except (TypeError, ValueError):  # the name of a category
        return str(value)


def to_html(figure: Figure) -> str:
    """The figure as a picture with its description."""
    return f'<img alt="{escape(describe(figure))}" src="data:image/png;base64,{print_figure(figure, base64=True)}">'


def switch_on() -> None:
    """Show every figure with its description. A formatter set for the class would be dropped by pyplot when it loads."""
    Figure._repr_html_ = to_html
