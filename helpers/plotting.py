"""Figures from records and counts. Each function takes an Axes, draws on it and returns it; none writes a file.

Colours are told apart by colour-blind readers (Okabe and Ito), and no figure relies on colour alone: lines differ in
their dashes, surfaces in their hatching.
"""

from __future__ import annotations

from helpers.comparison import accuracy, accuracy_interval, by_method
from helpers.memory import GB
from helpers.records import RunRecord

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

COLOURS = {"base": "#7f7f7f", "lora": "#0072B2", "full": "#D55E00", "qlora": "#009E73", "dora": "#CC79A7",
           "rslora": "#E69F00", "adalora": "#56B4E9", "grpo": "#882255", "dpo": "#117733"}  # fmt: skip
DASHES = {"base": ":", "lora": "-", "full": "--", "qlora": "-.", "dora": (0, (1, 1)), "rslora": (0, (5, 1, 1, 1)),
          "adalora": (0, (3, 3)), "grpo": "-", "dpo": "--"}  # fmt: skip
HATCHES = {"base": "", "lora": "", "full": "//", "qlora": "..", "dora": "xx", "rslora": "\\\\",
           "adalora": "++", "grpo": "oo", "dpo": "**"}  # fmt: skip
PARTS = {"weights": "#0072B2", "adapter": "#56B4E9", "masters": "#F0E442", "optimizer": "#D55E00", "gradients": "#E69F00",
         "update": "#882255", "gathered": "#999999", "activations": "#009E73", "logits": "#CC79A7"}  # fmt: skip
PATTERNS = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "||")  # of neighbouring surfaces, in their order
PHASES = {"load": "#DDDDDD", "forward": "#56B4E9", "backward": "#E69F00", "step": "#D55E00", "save": "#BBBBBB"}


def loss_curves(records: list[RunRecord], axes: Axes, smooth: int = 10) -> Axes:
    """Training loss by step, one line a run, averaged over the last ``smooth`` steps."""
    for record in records:
        losses = [s["loss"] for s in record.steps]
        if not losses:
            continue
        line = [sum(losses[max(0, i - smooth + 1) : i + 1]) / min(i + 1, smooth) for i in range(len(losses))]
        axes.plot(
            [s["step"] for s in record.steps], line, color=COLOURS[record.method], linestyle=DASHES[record.method],
            label=f"{record.method}, seed {record.seed}",
        )  # fmt: skip
    axes.set(xlabel="step", ylabel="training loss, nats a token", yscale="log")
    axes.set_title(f"Training loss, mean of {smooth} steps")
    low, high = axes.get_ylim()  # where losses span little, 1, 2 and 5 may be one number or none
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(6, steps=(1, 2, 5, 10)))
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10), integer=True))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    return axes


def memory_parts(
    predictions: dict[str, dict[str, int]], axes: Axes, measured: dict[str, int] | None = None, marked: str = "peak"
) -> Axes:
    """Predicted memory by part as stacked bars, its total marked, with the measured one as a diamond. All in bytes.

    Args:
        marked: what the totals are.
    """
    names = list(predictions)
    left = [0.0] * len(names)
    peaks = [predictions[name]["total"] / GB for name in names]
    for (part, colour), hatch in zip(PARTS.items(), PATTERNS, strict=True):
        sizes = [predictions[name].get(part, 0) / GB for name in names]
        if max(sizes) > 0:
            label = part.replace("_", " ")
            axes.barh(names, sizes, left=left, color=colour, hatch=hatch, label=label, edgecolor="white")
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.plot(peaks, names, "|k", markersize=22, markeredgewidth=3, label=f"predicted {marked}")
    for row, (name, end, peak) in enumerate(zip(names, left, peaks, strict=True)):
        real = (measured or {}).get(name, 0) / GB
        words = f"   predicted {marked} {peak:.3g} GB" + (f"\n   measured {real:.3g} GB" if real else "")
        axes.text(max(end, peak, real), row, words, va="center", fontsize=9)
    if measured:
        axes.plot([measured[n] / GB for n in names], names, "kD", markersize=8, label=f"measured {marked}")
    axes.set_xlim(0, 1.4 * max(left + [v / GB for v in (measured or {}).values()]))
    axes.set(xlabel="GB", title="Predicted memory by part")
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4, frameon=False)
    return axes


def memory_timeline(record: RunRecord, axes: Axes, since: float = 0, until: float = float("inf")) -> Axes:
    """Memory in use between two moments, in seconds, with the phase of each sample as a coloured and hatched ground."""
    points = [p for p in record.memory["timeline"] if since <= p[0] <= until]
    times, used = [p[0] for p in points], [p[1] / GB for p in points]
    spans: dict[str, list[tuple[float, float]]] = {phase: [] for phase in PHASES}
    for (before, _, _), (after, _, phase) in zip(points, points[1:], strict=False):  # a sample closes its phase
        last = spans[phase][-1] if spans[phase] else None
        if last and abs(last[0] + last[1] - before) < 1e-9:
            spans[phase][-1] = (last[0], after - last[0])
        else:
            spans[phase].append((before, after - before))
    for (phase, found), hatch in zip(spans.items(), PATTERNS, strict=False):
        if found:
            axes.broken_barh(found, (0, 1), facecolor=PHASES[phase], hatch=hatch, edgecolor="white", alpha=0.5, linewidth=0,
                             label=phase, transform=axes.get_xaxis_transform())  # fmt: skip
    axes.plot(times, used, color="black", linewidth=1.4, drawstyle="steps-pre", label="in use")
    axes.axhline(record.memory["peak"] / GB, color="black", linestyle=":", linewidth=1)
    axes.text(times[0], record.memory["peak"] / GB, f" peak {record.memory['peak'] / GB:.2f} GB", va="bottom")
    axes.set(xlabel="seconds since the start", ylabel="GB in use", title=f"Memory over time: {record.method}")
    axes.set_ylim(0, 1.2 * max(max(used), record.memory["peak"] / GB))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=6, frameon=False)
    return axes


def length_histogram(lengths: dict[str, list[int]], limit: int, axes: Axes) -> Axes:
    """Tokens a row for each split, with ``max_length`` as a line."""
    found = [length for split in lengths.values() for length in split]
    width = 5 * max(1, limit // 250)  # of a bar: at most some fifty below the limit
    bins = range(min(found) // width * width, max(found) + width + 1, width)
    axes.hist(list(lengths.values()), bins=bins, stacked=True, label=list(lengths), edgecolor="white",
              color=["#0072B2", "#E69F00", "#009E73", "#CC79A7"][: len(lengths)], hatch=list(PATTERNS[: len(lengths)]))  # fmt: skip
    axes.axvline(limit, color="black", linestyle="--")
    axes.annotate(f"max_length {limit}", (limit, 0.95), xycoords=axes.get_xaxis_transform(), xytext=(-4, 0),
                  textcoords="offset points", va="top", ha="right", rotation=90)  # fmt: skip
    axes.set(xlabel="tokens in a row", ylabel="rows", title="Length of the rows")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return axes


def scores(records: list[RunRecord], axes: Axes, part: str = "exact_match") -> Axes:
    """Exact match of each method over all its seeds, with the 95 % Wilson interval; single seeds as dots."""
    shown = [(method, runs) for method, runs in by_method(records).items() if accuracy(runs, part)]
    for row, (method, runs) in enumerate(shown):
        right, total = accuracy(runs, part)
        low, high = accuracy_interval(runs, part)
        share = right / total
        axes.barh(row, 100 * share, color=COLOURS[method], hatch=HATCHES[method], edgecolor="white", height=0.6)
        axes.errorbar(100 * share, row, xerr=[[100 * (share - low)], [100 * (high - share)]], color="black", capsize=5)
        for run in runs if len(runs) > 1 else []:
            one = run.evaluation[part]
            axes.plot(100 * sum(one) / len(one), row + 0.22, "o", color="white", markeredgecolor="black", markersize=5)
        axes.text(101, row, f"{right}/{total}", va="center")
    axes.set_yticks(range(len(shown)), [method for method, _ in shown])
    axes.set(xlim=(0, 130), xlabel="answers exactly right, %", title="Exact match with 95 % interval")
    axes.invert_yaxis()
    return axes


def bars(values: dict[str, float], axes: Axes, label: str) -> Axes:
    """One bar a method with its value written at its end."""
    for row, (method, value) in enumerate(values.items()):
        axes.barh(row, value, color=COLOURS.get(method, "#0072B2"), hatch=HATCHES.get(method, ""), edgecolor="white")
        axes.text(value, row, f"  {value:,.0f}" if value >= 100 else f"  {value:.3g}", va="center")
    axes.set_yticks(range(len(values)), list(values))
    axes.set(xlabel=label, xlim=(0, 1.35 * max(values.values(), default=1)))
    axes.invert_yaxis()
    return axes


def against_peak(values: dict[str, float], peaks: dict[str, float | None], axes: Axes) -> Axes:
    """One bar a measured speed, in a dashed frame that ends at the stated peak where one is known."""
    ends = {name: max(value, peaks.get(name) or 0) for name, value in values.items()}
    for row, (name, value) in enumerate(values.items()):
        words = f"  {value:,.0f}" if value >= 100 else f"  {value:.3g}"
        axes.barh(row, value, color="#0072B2")
        if peak := peaks.get(name):
            axes.barh(row, peak, fill=False, edgecolor="black", linestyle="--")
            words += f", {value / peak:.0%} of {peak:,.0f}"
        axes.text(ends[name], row, words, va="center")
    axes.set_yticks(range(len(values)), list(values))
    axes.set_xlim(0, 1.8 * max(ends.values()))
    axes.invert_yaxis()
    return axes


def update_energy(records: list[RunRecord], axes: Axes, kind: str) -> Axes:
    """Share of an update's squared norm that its best rank-r product holds, one line a layer of this type."""
    for record in records:
        found = [u for u in record.update if u["layer"].endswith(f".{kind}")]
        for update, marker in zip(found, "os^Dv", strict=False):
            axes.plot(update["ranks"], [100 * e for e in update["energy"]], color=COLOURS[record.method],
                      linestyle=DASHES[record.method], marker=marker, markersize=4,
                      label=f"{record.method}, layer {update['layer'].split('.')[0]}")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="rank", ylabel="share of the update, %", title=kind, ylim=(0, 105))
    axes.grid(alpha=0.3)
    return axes


def token_strip(tokens: list[str], supervised: list[bool], width: int = 88) -> str:
    """The tokens of a row as HTML: supervised ones on a dark ground and underlined, masked ones plain; all escaped."""
    from html import escape

    pieces = []
    for token, kept in zip(tokens, supervised, strict=True):
        style = "background:#0072B2;color:white;text-decoration:underline" if kept else "background:#8883"
        shown = escape(token).replace("\n", "⏎").replace(" ", "·") or "∅"
        pieces.append(f'<span style="{style};padding:1px 2px;margin:1px;border-radius:3px">{shown}</span>')
        if "\n" in token:
            pieces.append("<br>")
    return f'<div style="font-family:monospace;line-height:1.9;max-width:{width}ch">{"".join(pieces)}</div>'


def sweep(records: list[RunRecord], axes: Axes) -> Axes:
    """Validation loss and, where scored, right validation answers against the learning rate, one line a method."""
    for method, runs in by_method(records).items():
        runs = sorted(runs, key=lambda r: r.settings["learning_rate"])
        rates = [r.settings["learning_rate"] for r in runs]
        losses = [r.training["validation_loss"][-1] for r in runs]
        axes.plot(rates, losses, color=COLOURS[method], linestyle=DASHES[method], marker="o", label=method)
        for rate, loss, run in zip(rates, losses, runs, strict=True):
            if right := accuracy([run]):
                axes.annotate(f"{right[0]}/{right[1]}", (rate, loss), textcoords="offset points", xytext=(0, 7), fontsize=9,
                              ha="center", bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.7})  # fmt: skip
    axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss, nats a token", title="Learning-rate sweep")
    if axes.texts:
        axes.set_title("Learning-rate sweep; at each point, right answers to validation questions")
    axes.margins(0.08, 0.14)
    axes.grid(alpha=0.3)
    axes.legend()
    return axes


def rungs(found: list[dict], axes: Axes, ceiling: float) -> Axes:
    """Tokens per second of each rung of helpers.engine.ladder, first at the top, and the most that the machine could do.

    A ceiling so far away that the bars could not be seen beside it is written and not drawn.
    """
    names, speeds = [rung["name"] for rung in found], [rung["tokens_per_second"] for rung in found]
    far, end = ceiling > 6 * max(speeds), 1.3 * max(speeds)
    axes.barh(names, speeds, color="#0072B2")
    for row, speed in enumerate(speeds):
        axes.text(speed, row, f"  {speed:,.0f} ({speed / speeds[0]:.1f}x)", va="center", fontsize=9)
    label = f"matrix products alone: {ceiling:,.0f}" + ", far to the right" * far
    axes.axvline(ceiling, color="black", linestyle="--", label=label)
    axes.set(xlabel="real tokens a second", xlim=(0, 1.15 * (end if far else max(ceiling, end))))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.invert_yaxis()
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=9, frameon=False)  # above: inside, it hides numbers
    return axes


def rung_memory(found: list[dict], axes: Axes) -> Axes:
    """Peak memory of each rung of helpers.engine.ladder, in GB; the axes share their rows with :func:`rungs`."""
    sizes = [rung["peak"] / GB for rung in found]
    axes.barh([rung["name"] for rung in found], sizes, color="#E69F00", hatch="//", edgecolor="white")
    for row, size in enumerate(sizes):
        axes.text(size, row, f"  {size:.3g}", va="center", fontsize=9)
    axes.set(xlabel="peak memory, GB", xlim=(0, 1.2 * max(sizes)))
    return axes


GROWS = {"row length, tokens": "rows of", "tokens a step": "tokens a step", "rank, all linear layers": "rank"}


def growth(rows: list[dict], panels) -> None:
    """Tokens per second against row length, tokens a step and rank, from tests/benchmarks/speed.py, in three panels."""
    best = 0
    for axes, (label, words) in zip(panels, GROWS.items(), strict=True):
        points = sorted(
            (int("".join(c for c in row["name"] if c.isdigit())), row["tokens_per_second"])
            for row in rows if words in row["name"] and "tokens_per_second" in row
        )  # fmt: skip
        best = max(best, *(speed for _, speed in points))
        axes.plot(*zip(*points, strict=True), marker="o", color="#0072B2")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel(label)
        axes.tick_params(axis="x", rotation=45)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="tokens a second", ylim=(0, 1.1 * best))
    panels[0].yaxis.set_major_formatter("{x:,.0f}")
