"""Figures from records and counts. Each function takes an Axes, draws on it and returns it; none writes a file.

Colours are told apart by colour-blind readers (Okabe and Ito), and no figure relies on colour alone: lines differ in
their dashes, surfaces in their hatching.
"""

from __future__ import annotations

from helpers.comparison import accuracy, accuracy_interval, by_method
from helpers.memory import GB
from helpers.records import RunRecord

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

STYLES = {  # of each method: colour, dashes of a line, hatching of a surface
    "base": ("#7f7f7f", ":", ""),
    "lora": ("#0072B2", "-", ""),
    "full": ("#D55E00", "--", "//"),
    "qlora": ("#009E73", "-.", ".."),
    "dora": ("#CC79A7", (0, (1, 1)), "xx"),
    "rslora": ("#E69F00", (0, (5, 1, 1, 1)), "\\\\"),
    "adalora": ("#56B4E9", (0, (3, 3)), "++"),  # in the records of a sweep
    "grpo": ("#882255", "-", "oo"),
    "dpo": ("#117733", "--", "**"),
}
COLOURS, DASHES, HATCHES = ({method: style[i] for method, style in STYLES.items()} for i in range(3))
PARTS = {"weights": "#0072B2", "adapter": "#56B4E9", "masters": "#F0E442", "optimizer": "#D55E00"}
PARTS |= {"gradients": "#E69F00", "update": "#882255", "gathered": "#999999"}
PARTS |= {"activations": "#009E73", "logits": "#CC79A7"}
PHASES = {"load": "#DDDDDD", "forward": "#56B4E9", "backward": "#E69F00", "step": "#D55E00", "save": "#BBBBBB"}
SPLITS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
PATTERNS = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "||")  # of neighbouring surfaces, in their order


def loss_curves(records: list[RunRecord], axes: Axes, smooth: int | None = None) -> Axes:
    """Training loss by step, one line per run, averaged over the last ``smooth`` steps, by default a quarter of all: rows of like
    length share a batch, so a batch holds either short questions or long conversations."""
    ends: dict[str, list[float]] = {}
    for record in (r for r in records if r.steps):
        losses = [s["loss"] for s in record.steps]
        smooth = smooth or max(len(losses) // 4, 1)
        line = [sum(losses[max(0, i - smooth + 1) : i + 1]) / min(i + 1, smooth) for i in range(len(losses))]
        style = {"color": COLOURS[record.method], "linestyle": DASHES[record.method]}
        axes.plot([s["step"] for s in record.steps], line, **style, label=f"{record.method}, seed {record.seed}")
        ends.setdefault(record.method, []).append(line[-1])
    axes.set(xlabel="step", ylabel=f"training loss, nats per token (mean of {smooth} steps)", yscale="log")
    last = ", ".join(f"{method} {sum(losses) / len(losses):.3g}" for method, losses in ends.items())
    axes.set_title(f"Training loss at the end: {last}")
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
    """Predicted bytes by part as stacked bars, with the total (``marked`` says of what) and the measured one as a diamond."""
    names = list(predictions)
    left = [0.0] * len(names)
    peaks = [predictions[name]["total"] / GB for name in names]
    for (part, colour), hatch in zip(PARTS.items(), PATTERNS, strict=True):
        sizes = [predictions[name].get(part, 0) / GB for name in names]
        if max(sizes) > 0:
            axes.barh(names, sizes, left=left, color=colour, hatch=hatch, label=part, edgecolor="white")
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    axes.plot(peaks, names, "|k", markersize=22, markeredgewidth=3, label=f"predicted {marked}")
    for row, (name, end, peak) in enumerate(zip(names, left, peaks, strict=True)):
        real = (measured or {}).get(name, 0) / GB
        words = f"   predicted {marked} {peak:.3g} GB" + (f"\n   measured {real:.3g} GB" if real else "")
        axes.text(max(end, peak, real), row, words, va="center", fontsize=9)
    if measured:
        axes.plot([measured[n] / GB for n in names], names, "kD", markersize=8, label=f"measured {marked}")
    axes.set_xlim(0, 1.4 * max(left + [v / GB for v in (measured or {}).values()]))
    low, high = names[peaks.index(min(peaks))], names[peaks.index(max(peaks))]
    needs = f"{low} needs {min(peaks):.3g} GB" + f", {high} {max(peaks):.3g} GB" * (low != high)
    axes.set(xlabel="GB", title=f"Predicted: {needs}")
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=4, frameon=False)
    return axes


def memory_timeline(record: RunRecord, axes: Axes, since: float = 0, until: float = float("inf")) -> Axes:
    """Memory in use between two moments, in seconds, with the phase of each sample as a coloured and hatched ground."""
    points = [p for p in record.memory["timeline"] if since <= p[0] <= until]
    times, used = [p[0] for p in points], [p[1] / GB for p in points]
    spans = [(before[0], after[0] - before[0], after[2]) for before, after in zip(points, points[1:], strict=False)]
    ground = {"edgecolor": "white", "alpha": 0.5, "linewidth": 0, "transform": axes.get_xaxis_transform()}
    for (phase, colour), hatch in zip(PHASES.items(), PATTERNS, strict=False):  # a sample closes its phase
        if found := [(start, width) for start, width, name in spans if name == phase]:
            axes.broken_barh(found, (0, 1), facecolor=colour, hatch=hatch, label=phase, antialiased=False, **ground)
    highest = max(points, key=lambda point: point[1])[2]
    axes.plot(times, used, color="black", linewidth=1.4, drawstyle="steps-pre", label="in use")
    axes.axhline(record.memory["peak"] / GB, color="black", linestyle=":", linewidth=1)
    axes.text(times[0], record.memory["peak"] / GB, f" peak {record.memory['peak'] / GB:.2f} GB", va="bottom")
    axes.set(xlabel="seconds since the start", ylabel="GB in use", title=f"{record.method}: most memory in {highest}")
    axes.set_ylim(0, 1.2 * max(max(used), record.memory["peak"] / GB))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=6, frameon=False)
    return axes


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


def scores(records: list[RunRecord], axes: Axes, part: str = "exact_match") -> Axes:
    """Exact match of each method over all its seeds, with the 95 % Wilson interval; single seeds as dots."""
    shown = [(method, runs) for method, runs in by_method(records).items() if accuracy(runs, part)]
    totals = {method: accuracy(runs, part) for method, runs in shown}
    for row, (method, runs) in enumerate(shown):
        right, total = totals[method]
        low, high = accuracy_interval(runs, part)
        share = right / total
        axes.barh(row, 100 * share, color=COLOURS[method], hatch=HATCHES[method], edgecolor="white", height=0.6)
        axes.errorbar(100 * share, row, xerr=[[100 * (share - low)], [100 * (high - share)]], color="black", capsize=5)
        for run in runs if len(runs) > 1 else []:
            one = run.evaluation[part]
            axes.plot(100 * sum(one) / len(one), row + 0.22, "o", color="white", markeredgecolor="black", markersize=5)
        axes.text(101, row, f"{right}/{total}", va="center")
    axes.set_yticks(range(len(shown)), [method for method, _ in shown])
    right = ", ".join(f"{method} {right / total:.0%}" for method, (right, total) in totals.items())
    axes.set(xlim=(0, 130), xlabel="right answers, % (line: 95 % interval)", title=f"Right answers: {right}")
    axes.invert_yaxis()
    return axes


def bars(values: dict[str, float], axes: Axes, label: str) -> Axes:
    """One bar per method, or whatever the names mean, with its value written at its end."""
    for row, (name, value) in enumerate(values.items()):
        axes.barh(row, value, color=COLOURS.get(name, "#0072B2"), hatch=HATCHES.get(name, ""), edgecolor="white")
        axes.text(value, row, f"  {value:,.0f}" if value >= 100 else f"  {value:.3g}", va="center")
    axes.set_yticks(range(len(values)), list(values))
    axes.set(xlabel=label, xlim=(0, 1.35 * max(values.values(), default=1)), ylim=(len(values) - 0.5, -0.5))
    return axes


def against_peak(values: dict[str, float], peaks: dict[str, float | None], axes: Axes) -> Axes:
    """One bar per measured speed, in a dashed frame that ends at the stated peak where one is known."""
    bars(values, axes, "")
    ends = [max(value, peaks.get(name) or 0) for name, value in values.items()]
    for row, ((name, value), words) in enumerate(zip(values.items(), list(axes.texts), strict=True)):
        if peak := peaks.get(name):
            axes.barh(row, peak, fill=False, edgecolor="black", linestyle="--")
            words.set(x=ends[row], text=f"{words.get_text()}, {value / peak:.0%} of {peak:,.0f}")
    axes.set_xlim(0, 1.45 * max(ends))
    return axes


def update_energy(records: list[RunRecord], axes: Axes, kind: str) -> Axes:
    """Share of an update's squared norm that its best rank-r product holds, one line per layer of this type."""
    half = 0  # the largest rank that half of an update needs
    for record in records:
        found = [u for u in record.update if u["layer"].endswith(f".{kind}")]
        for update, marker in zip(found, "os^Dv", strict=False):
            half = max(half, next(r for r, e in zip(update["ranks"], update["energy"], strict=True) if e >= 0.5))
            style = {"color": COLOURS[record.method], "linestyle": DASHES[record.method], "marker": marker}
            label = f"{record.method}, layer {update['layer'].split('.')[0]}"
            axes.plot(update["ranks"], [100 * e for e in update["energy"]], markersize=4, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="rank", ylabel="share of the update, %", title=f"{kind}: rank {half} holds half", ylim=(0, 105))
    axes.grid(alpha=0.3)
    return axes


def lora_sketch(inputs: int, outputs: int, rank: int, axes: Axes) -> Axes:
    """A linear layer with its adapter, to scale: the input, W above A and B, and the sum of both ways."""
    tall, thin = outputs / inputs, rank / inputs
    boxes = (  # left, bottom, width, height, colour, label below
        (0, 0, 0.03, 1, "#BBBBBB", f"input x\n{inputs} numbers"),
        (0.8, 0, 1, tall, "#DDDDDD", f"W, frozen: {outputs} x {inputs}"),
        (0.8, -0.75, 1, thin, COLOURS["lora"], f"A, trained: {rank} x {inputs}"),
        (2.2, -1.2, thin, tall, COLOURS["lora"], f"B, trained: {outputs} x {rank}"),
        (3.3, 0, 0.03, tall, "#BBBBBB", f"output\n{outputs} numbers"),
    )
    for left, bottom, width, height, colour, label in boxes:
        axes.add_patch(Rectangle((left, bottom), width, height, facecolor=colour, edgecolor="black", linewidth=0.6))
        at, side = (0.12, "right") if left == 0 else (left + width / 2, "center")  # beside the way to A
        axes.text(at, bottom - 0.05, label, ha=side, va="top", fontsize=10)
    middle, low, sum_at = tall / 2, -0.75 + thin / 2, (2.8, tall / 2)
    ways = {(0.06, middle): (0.77, middle), (0.06, 0.2): (0.77, low), (1.83, low): (2.17, low)}  # from, to
    ways |= {(1.83, middle): (2.7, middle), (2.23 + thin, low): (2.76, middle - 0.1), (2.9, middle): (3.27, middle)}
    for start, end in ways.items():
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->"})
    axes.text(*sum_at, "+", ha="center", va="center", fontsize=14, bbox={"boxstyle": "circle,pad=0.15", "fc": "white"})
    axes.text(2.62, low, "times \u03b1 / r", va="center", fontsize=10)
    axes.set(xlim=(-0.75, 3.7), ylim=(-1.45, max(1, tall) + 0.1), aspect="equal")
    axes.set_title(f"LoRA trains {rank * (inputs + outputs):,} numbers beside {inputs * outputs:,} frozen ones")
    axes.axis("off")
    return axes


def sweep(runs: list[dict], axes: Axes) -> Axes:
    """Right validation answers against the learning rate: the mean over seeds as a line for each method and rank, with a dot
    per seed and a cross where a run diverged. ``runs`` are rows of ``load_table("sweep-small")``."""
    lines: dict[tuple, dict[float, list]] = {}
    for run in (r for r in runs if r["stopped"] is None):
        key = run["method"], run["rank"] or 0, run["targets"] or ""
        lines.setdefault(key, {}).setdefault(run["learning_rate"], []).append(
            (100 * run["right"] / run["questions"], run)
        )
    best = {}
    for number, ((method, rank, targets), rates) in enumerate(sorted(lines.items())):
        label = method + f", rank {rank}" * bool(rank) + ", attention alone" * ("," in targets)
        means = {rate: sum(share for share, _ in rates[rate]) / len(rates[rate]) for rate in sorted(rates)}
        look = {
            "color": COLOURS[method] if len({m for m, *_ in lines}) > 1 else f"C{number}",
            "marker": "os^Dv"[number % 5],
        }
        axes.plot(list(means), list(means.values()), linestyle=("-", "--", "-.", ":")[number % 4], label=label, **look)
        for rate, share, run in ((rate, *each) for rate, found in rates.items() for each in found):
            axes.plot(rate, share, "x" if run["diverged"] else ".", color=look["color"], alpha=0.8)
        best[label] = max(means, key=means.get), max(means.values())
    axes.set(xscale="log", xlabel="learning rate", ylabel="right validation answers, %", ylim=(-3, 100))
    top = sorted(best.items(), key=lambda item: -item[1][1])[:2]
    finding = "; ".join(f"{name} at {rate:g}: {share:.0f} %" for name, (rate, share) in top)
    lost = sum(run["diverged"] for run in runs)
    axes.set_title(f"Most right: {finding}\n{lost} of {len(runs)} runs diverged (x)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    return axes


def rungs(found: list[dict], axes: Axes, ceiling: float) -> Axes:
    """Tokens per second of each rung of helpers.engine.ladder, first at the top, and the most that the machine could do.

    A ceiling so far away that the bars could not be seen beside it is written and not drawn.
    """
    speeds = {rung["name"]: rung["tokens_per_second"] for rung in found}
    first, best = next(iter(speeds.values())), max(speeds, key=speeds.get)
    far, end = ceiling > 6 * speeds[best], 1.3 * speeds[best]
    bars(speeds, axes, "tokens per second, without padding")
    label = f"matrix products alone: {ceiling:,.0f}" + ", far to the right" * far
    axes.axvline(ceiling, color="black", linestyle="--", label=label)
    axes.set(xlim=(0, 1.15 * (end if far else max(ceiling, end))))
    axes.set_title(f"Fastest: {best}, {speeds[best] / first:.1f} times the first", loc="left", pad=22)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, frameon=False)  # above: inside, it hides numbers
    return axes


def growth(rows: list[dict], panels) -> None:
    """Tokens per second against row length, tokens per step and rank, from tests/benchmarks/speed.py, in three panels."""
    best, kinds = 0, {"row length": "rows of", "tokens per step": "tokens a step", "rank, all linear layers": "rank"}
    for axes, (label, words) in zip(panels, kinds.items(), strict=True):
        rows_here = [row for row in rows if words in row["name"] and "tokens_per_second" in row]
        points = sorted((int("".join(filter(str.isdigit, r["name"]))), r["tokens_per_second"]) for r in rows_here)
        best = max(best, *(speed for _, speed in points))
        axes.plot(*zip(*points, strict=True), marker="o", color="#0072B2")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        (low, slow), (high, fast) = points[0], points[-1]
        axes.set(xlabel=label, title=f"{100 * (fast / slow - 1):+.0f} % from {low:,} to {high:,}")
        axes.tick_params(axis="x", rotation=45)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="tokens per second", ylim=(0, 1.1 * best))
    panels[0].yaxis.set_major_formatter("{x:,.0f}")
