"""What people and models wrote, and what was checked: tokens in colour, their number, tables of text, guards that unfold."""

from __future__ import annotations

from html import escape

from helpers.plotting.figures import PATTERNS

import pandas
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator


def _pieces(tokens: list[str], styles: list[str]) -> str:
    """Tokens one after the other as HTML, each in its style, with spaces and line breaks made visible; all escaped."""
    spans = []
    for token, style in zip(tokens, styles, strict=True):
        shown = escape(token).replace("\n", "⏎").replace(" ", "·") or "∅"
        spans.append(f'<span style="{style};padding:1px 2px;margin:1px;border-radius:3px">{shown}</span>')
        if "\n" in token:
            spans.append("<br>")
    return f'<div style="font-family:monospace;line-height:1.9;max-width:88ch">{"".join(spans)}</div>'


PADDED, MASKED, SUPERVISED = "#FFFFFF", "#d9d9d9", "#0072B2"  # of padding, and of tokens that are read or learned
TOKENS = ListedColormap([PADDED, MASKED, SUPERVISED])
SPLITS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")


def token_strip(tokens: list[str], supervised: list[bool]) -> HTML:
    """The tokens of a row: supervised ones on a dark ground and underlined, masked ones plain."""
    learned = f"background:{SUPERVISED};color:white;text-decoration:underline"
    return HTML(_pieces(tokens, [learned if each else f"background:{MASKED}88" for each in supervised]))


def token_heat(tokens: list[str], losses: list[float]) -> HTML:
    """The tokens of an answer, the darker the higher their loss in nats; above 0.5 the loss is written behind them."""
    top, styles, texts = max(max(losses), 1e-9), [], []
    for token, loss in zip(tokens, losses, strict=True):
        styles.append(f"background:rgba(213,94,0,{0.05 + 0.9 * min(loss / top, 1) ** 0.5:.2f})")
        texts.append(f"{token}[{loss:.1f}]" if loss >= 0.5 else token)
    return HTML(_pieces(texts, styles))


def passed(guards: list[dict]) -> HTML:
    """One line that says how many checks held, and unfolds into what each of them saw."""
    table = texts(pandas.DataFrame(guards)).to_html()
    return HTML(f"<details><summary><b>{len(guards)} checks passed</b> (unfold to see each)</summary>{table}</details>")


def texts(frame: pandas.DataFrame, longest: int = 400):
    """A table of what people and models wrote: escaped, wrapped between words, aligned to the top left."""
    cut = frame.map(lambda text: text if not isinstance(text, str) or len(text) <= longest else f"{text[:longest]} …")
    style = {"vertical-align": "top", "text-align": "left", "white-space": "pre-wrap", "overflow-wrap": "break-word"}
    return cut.style.hide(axis="index").format(escape="html").set_properties(**style)


def length_histogram(lengths: dict[str, list[int]], limit: int, axes: Axes) -> Axes:
    """Tokens per row for each split, with ``max_length`` as a line."""
    found = [length for split in lengths.values() for length in split]
    width = 5 * max(1, limit // 250)  # of a bar: at most some fifty below the limit
    bins = range(min(found) // width * width, max(found) + width + 1, width)
    style = {"color": SPLITS[: len(lengths)], "hatch": PATTERNS[: len(lengths)], "edgecolor": "white"}
    axes.hist(list(lengths.values()), bins=bins, stacked=True, label=list(lengths), **style)
    axes.axvline(limit, color="black", linestyle="--")
    place = {"xytext": (-4, 0), "textcoords": "offset points", "va": "top", "ha": "right", "rotation": 90}
    axes.annotate(f"max_length {limit}", (limit, 0.95), xycoords=axes.get_xaxis_transform(), **place)
    long = sum(length > limit for length in found)
    axes.set(xlabel="tokens in a row", ylabel="rows", title=f"{long} of {len(found)} rows exceed {limit} tokens")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return axes
