"""Figures from records and measurements: each function draws on the Axes that it is given and returns it.

Colour-blind readers can tell the colours apart (Okabe and Ito); lines differ in their dashes too, surfaces in their hatching.
"""

from __future__ import annotations

from helpers.comparison import accuracy, accuracy_interval, by_method
from helpers.memory import GB
from helpers.records import RunRecord

import pandas
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
    "grpo": ("#882255", "-", "oo"),
    "dpo": ("#117733", "--", "**"),
}
COLOURS, DASHES, HATCHES = ({method: style[i] for method, style in STYLES.items()} for i in range(3))
PARTS = {"weights": "#0072B2", "adapter": "#56B4E9", "masters": "#F0E442", "optimizer": "#D55E00"}
PARTS |= {"gradients": "#E69F00", "update": "#882255", "gathered": "#999999", "activations": "#009E73"}
PARTS |= {"logits": "#CC79A7"}
BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22), "frameon": False}  # a legend's place
PHASES = {"load": "#DDDDDD", "forward": "#56B4E9", "backward": "#E69F00", "step": "#D55E00", "save": "#BBBBBB"}
PATTERNS = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "||")  # of neighbouring surfaces, in their order


def loss_curves(records: list[RunRecord], axes: Axes) -> Axes:
    """Training loss by step, the mean over an eighth of all steps. Rows of like length share a batch, so most batches hold
    questions or conversations only, whose losses differ by far: each kind is a line, batches of both are dots."""
    ends = []
    for record in (r for r in records if r.steps):
        losses = pandas.Series({step["step"]: step["loss"] for step in record.steps})
        scored = record.data.get("scored") or [1.0] * len(losses)
        kinds = pandas.Series(scored[: len(losses)], losses.index)  # a record may be cut to its first steps
        parts = {"questions": losses[kinds == 1], "conversations": losses[kinds == 0]}
        if not all(map(len, parts.values())):
            parts = {"": losses}
        style = {"color": COLOURS[record.method], "linestyle": DASHES[record.method]}
        for kind, part in parts.items():
            line = part.rolling(max(len(part) // 8, 1), min_periods=1).mean()
            name, look = f"{record.method} {kind}".strip(), "." if kind == "conversations" else ""
            axes.plot(line, linewidth=1.2 if look else 2.4, marker=look, label=name, **style)
            ends.append(f"{name} {line.iloc[-1]:.2g}")
        if len(both := losses[(kinds > 0) & (kinds < 1)]):
            name = None if "batches of both" in axes.get_legend_handles_labels()[1] else "batches of both"
            axes.plot(both, ".", color="grey", alpha=0.5, label=name)
    axes.set(xlabel="step", ylabel="training loss, nats per token", yscale="log")
    axes.set_title("Training loss at the end: " + ", ".join(ends[:2]) + ("\n" + ", ".join(ends[2:])).rstrip())
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
    frame = pandas.DataFrame(predictions).T / GB
    left, peaks = pandas.Series(0.0, frame.index), frame["total"]
    real = pandas.Series(measured or {}, frame.index, dtype=float) / GB
    for (part, colour), hatch in zip(PARTS.items(), PATTERNS, strict=True):
        if part in frame and frame[part].max() > 0:
            axes.barh(frame.index, frame[part], left=left, color=colour, hatch=hatch, label=part, edgecolor="white")
            left += frame[part]
    axes.plot(peaks, peaks.index, "|k", markersize=22, markeredgewidth=3, label=f"predicted {marked}")
    ends = pandas.concat([left, peaks, real], axis=1).max(axis=1)
    for name, peak in peaks.items():
        words = f"   predicted {marked} {peak:.3g} GB"
        words += f"\n   measured {real[name]:.3g} GB" * bool(real[name] > 0)
        axes.text(ends[name], name, words, va="center", fontsize=9)
    if measured:
        axes.plot(real, real.index, "kD", markersize=8, label=f"measured {marked}")
    needs = f"{peaks.idxmin()} needs {peaks.min():.3g} GB"
    needs += f", {peaks.idxmax()} {peaks.max():.3g} GB" * (peaks.idxmin() != peaks.idxmax())
    axes.set(xlabel="GB", title=f"Predicted: {needs}", xlim=(0, 1.4 * ends.max()))
    axes.invert_yaxis()
    axes.legend(ncols=4, **BELOW)
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
    highest, peak = max(points, key=lambda point: point[1])[2], record.memory["peak"] / GB
    axes.plot(times, used, color="black", linewidth=1.4, drawstyle="steps-pre", label="in use")
    axes.axhline(peak, color="black", linestyle=":", linewidth=1)
    axes.text(times[0], peak, f" peak {peak:.2f} GB", va="bottom")
    axes.set(xlabel="seconds since the start", ylabel="GB in use", ylim=(0, 1.2 * max(*used, peak)))
    axes.set_title(f"{record.method}: highest sample in {highest}")
    axes.legend(ncols=6, **BELOW)
    return axes


def scores(records: list[RunRecord], axes: Axes, part: str = "exact_match") -> Axes:
    """Exact match of each method over all its seeds, with the 95 % Wilson interval; single seeds as dots."""
    shown = {method: runs for method, runs in by_method(records).items() if accuracy(runs, part)}
    shares = {}
    for row, (method, runs) in enumerate(shown.items()):
        (right, total), (low, high) = accuracy(runs, part), accuracy_interval(runs, part)
        shares[method] = share = right / total
        error = {"xerr": [[100 * (share - low)], [100 * (high - share)]], "capsize": 5}
        axes.barh(row, 100 * share, 0.6, color=COLOURS[method], hatch=HATCHES[method], edgecolor="white", **error)
        seeds = [100 * sum(r.evaluation[part]) / len(r.evaluation[part]) for r in runs if len(runs) > 1]
        axes.plot(seeds, [row + 0.22] * len(seeds), "o", color="white", markeredgecolor="black", markersize=5)
        axes.text(101, row, f"{right}/{total}", va="center")
    axes.set_yticks(range(len(shown)), list(shown))
    found = ", ".join(f"{method} {share:.0%}" for method, share in shares.items())
    axes.set(xlim=(0, 100), xlabel="right answers, % (line: 95 % interval)", title=f"Right answers: {found}")
    axes.invert_yaxis()
    return axes


def bars(values: dict[str, float], axes: Axes, label: str, peaks: dict[str, float | None] | None = None) -> Axes:
    """One bar per method, or whatever the names mean, with its value at its end; in a dashed frame that ends at its stated peak."""
    for row, (name, value) in enumerate(values.items()):
        axes.barh(row, value, color=COLOURS.get(name, "#0072B2"), hatch=HATCHES.get(name, ""), edgecolor="white")
        words, peak = f"  {value:,.0f}" if value >= 100 else f"  {value:.3g}", peaks and peaks.get(name)
        if peak:
            axes.barh(row, peak, fill=False, edgecolor="black", linestyle="--")
            words += f", {value / peak:.0%} of {peak:,.0f}"
        axes.text(max(value, peak or 0), row, words, va="center")
    axes.set_yticks(range(len(values)), list(values))
    end = max([*values.values(), *filter(None, (peaks or {}).values())], default=1)
    axes.set(xlabel=label, xlim=(0, (1.45 if peaks else 1.35) * end), ylim=(len(values) - 0.5, -0.5))
    return axes


def update_energy(records: list[RunRecord], axes: Axes, kind: str) -> Axes:
    """Share of an update's squared norm that its best rank-r product holds, one line per layer of this type."""
    half: dict[str, int] = {}  # the largest rank that half of an update needs, by method
    for record in records:
        found = [u for u in record.update if u["layer"].endswith(f".{kind}")]
        for update, marker in zip(found, "os^Dv", strict=False):
            energy = pandas.Series(update["energy"], update["ranks"])
            half[record.method] = max(half.get(record.method, 0), energy[energy >= 0.5].index[0])
            label = f"{record.method}, layer {update['layer'].split('.')[0]}"
            style = {"color": COLOURS[record.method], "linestyle": DASHES[record.method], "marker": marker}
            axes.plot(100 * energy, markersize=4, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    found = ", ".join(f"{method} rank {rank}" for method, rank in half.items())
    axes.set(xlabel="rank", ylabel="share of the update, %", ylim=(0, 105))
    axes.set_title(f"{kind}: half is in\n{found}", fontsize=10)
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
    middle, low = tall / 2, -0.75 + thin / 2
    ways = {(0.06, middle): (0.77, middle), (0.06, 0.2): (0.77, low), (1.83, low): (2.17, low)}  # from, to
    ways |= {(1.83, middle): (2.7, middle), (2.23 + thin, low): (2.76, middle - 0.1), (2.9, middle): (3.27, middle)}
    for start, end in ways.items():
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->"})
    around = {"boxstyle": "circle,pad=0.15", "fc": "white"}
    axes.text(2.8, middle, "+", ha="center", va="center", fontsize=14, bbox=around)
    axes.text(2.62, low, "times \u03b1 / r", va="center", fontsize=10)
    axes.set(xlim=(-0.75, 3.7), ylim=(-1.45, max(1, tall) + 0.1), aspect="equal")
    axes.set_title(f"LoRA trains {rank * (inputs + outputs):,} numbers beside {inputs * outputs:,} frozen ones")
    axes.axis("off")
    return axes


def sweep(runs: list[dict], axes: Axes) -> Axes:
    """Right validation answers by learning rate, from rows of ``load_table("sweep-small")``: means as lines, seeds as dots."""
    frame = pandas.DataFrame([r for r in runs if r["stopped"] is None]).fillna({"rank": 0, "targets": ""})
    frame["share"], frame["attention"] = 100 * frame["right"] / frame["questions"], frame["targets"].str.contains(",")
    best, apart, keys = {}, 0, ["method", "attention", "rank"]
    for number, ((method, attention, rank), own) in enumerate(frame.groupby(keys)):
        label = method + f", rank {rank:.0f}" * bool(rank) + ", attention alone" * attention
        by_rate, alike = own.groupby("learning_rate")["share"], frame[frame["method"] == method].groupby(keys).ngroups
        before = sum(name.startswith(method) for name in best)  # lines of this method: the lower the rank, the paler
        look = {"color": COLOURS[method], "alpha": 0.25 + 0.75 * (before + 1) / alike}
        axes.plot(by_rate.mean(), ("o-", "s--", "^-.", "D:", "v-", "P--", "X:")[number % 7], label=label, **look)
        axes.plot(own["learning_rate"], own["share"], ".", **look)
        best[f"{label} at {by_rate.mean().idxmax():g}"] = by_rate.mean().max()
        apart = max(apart, (by_rate.max() - by_rate.min()).max())
    if len(lost := frame[frame["diverged"]]):
        label = f"diverged: {len(lost)} of {len(runs)} runs"
        axes.plot(lost["learning_rate"], lost["share"], "x", color="black", markersize=10, label=label)
    finding = "; ".join(f"{name}: {best[name]:.0f} %" for name in sorted(best, key=best.get, reverse=True)[:2])
    axes.set(xscale="log", xlabel="learning rate", ylabel="right validation answers, %", ylim=(-5, 100))
    axes.set_title(f"Highest: {finding}\nseeds of one setting differ by up to {apart:.0f} points", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    return axes


def rungs(found: list[dict], axes: Axes, ceiling: float) -> Axes:
    """Tokens per second of each rung of helpers.engine.ladder, and the most that the machine could do, where it fits."""
    speeds = {rung["name"]: rung["tokens_per_second"] for rung in found}
    first, best = next(iter(speeds.values())), max(speeds, key=speeds.get)
    far, end = ceiling > 6 * speeds[best], 1.3 * speeds[best]
    bars(speeds, axes, "tokens per second, without padding")
    words = f"matrix products alone: {ceiling:,.0f}" + ", far to the right" * far
    axes.axvline(ceiling, color="black", linestyle="--", label=words)
    axes.set_xlim(0, 1.15 * (end if far else max(ceiling, end)))
    axes.set_title(f"Fastest: {best}, {speeds[best] / first:.1f} times the first", loc="left", pad=22)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=9, frameon=False)  # above: inside, it hides numbers
    return axes


def growth(rows: list[dict], panels) -> None:
    """Tokens per second against row length, tokens per step and rank, from tests/benchmarks/speed.py, in three panels."""
    frame = pandas.DataFrame(rows).dropna(subset="tokens_per_second")
    frame["number"] = pandas.to_numeric(frame["name"].str.replace(r"\D", "", regex=True))
    kinds = {"row length": "rows of", "tokens per step": "tokens a step", "rank, all linear layers": "rank"}
    for axes, (label, words) in zip(panels, kinds.items(), strict=True):
        speeds = frame[frame["name"].str.contains(words)].set_index("number")["tokens_per_second"].sort_index()
        axes.plot(speeds, marker="o", color="#0072B2")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        more = f"{100 * (speeds.iloc[-1] / speeds.iloc[0] - 1):+.0f} %"
        axes.set(xlabel=label, title=f"{more} from {speeds.index[0]:,} to {speeds.index[-1]:,}")
        axes.tick_params(axis="x", rotation=45)
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="tokens per second", ylim=(0, 1.1 * max(axes.dataLim.ymax for axes in panels)))
    panels[0].yaxis.set_major_formatter("{x:,.0f}")
