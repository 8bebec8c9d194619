"""Whether records may be compared, and the first table of a comparison."""

from __future__ import annotations

from statistics import mean, stdev

from helpers.comparison.statistics import wilson
from helpers.memory import GB
from helpers.records import REFERENCE_NOTE, RunRecord
from helpers.settings import AFTER_SFT

import pandas


class NotComparable(ValueError):
    """Records of runs that differ in something other than the method; the message says in what."""


PATH = ("attention", "kernels", "loss")  # decisions that change what a step costs


def comparability(records: list[RunRecord]) -> dict[str, object]:
    """What all records share, checked: base model, evaluation rows, and for trained ones the rows in their order.

    Returns:
        The shared values by name.

    Raises:
        NotComparable: names the field and the two values.
    """
    if not records:
        raise NotComparable("there are no records to compare")
    for run in records:
        if place := run.lacking():
            raise NotComparable(f"the record of {run.method}, seed {run.seed}, lacks {place}: run its notebook again")
    fields = {
        "base model": lambda r: r.model.get("fingerprint"),
        "evaluation rows": lambda r: (r.evaluation or {}).get("fingerprint"),
        "scored questions": lambda r: len((r.evaluation or {}).get("exact_match") or []),
        "held-out conversations": lambda r: ((r.evaluation or {}).get("prose") or {}).get("fingerprint"),
        "longest answer": lambda r: r.settings.get("max_new_tokens"),
    }
    for_trained = {
        "training rows": lambda r: r.data["fingerprints"]["train"],
        "supervised tokens": lambda r: r.training.get("supervised_tokens"),
        "precision": lambda r: r.decisions["precision"]["value"],
        "device": lambda r: str(r.device.get("name")).partition(", ")[0],  # without the threads of a processor
    }
    for_timed = {"device whose speed was measured": lambda r: r.device.get("name")}
    shared: dict[str, object] = {}
    trained = [r for r in records if r.method not in ("base", *AFTER_SFT)]  # those train on their own answers
    timed = [r for r in trained if r.training.get("tokens_per_second")]
    for part, names in ((records, fields), (trained, for_trained), (timed, for_timed)):
        for name, get in names.items():
            values = [(f"{r.method}, seed {r.seed},", get(r)) for r in part]
            for run, value in values:
                if str(value) != str(values[0][1]):
                    raise NotComparable(
                        f"{name} differ: {values[0][0]} has {values[0][1]}, {run} has {value}; run both with the same settings"
                    )
            shared[name] = values[0][1] if values else None
    for seed in sorted({r.seed for r in trained}):
        orders = {r.method: r.data["order"] for r in trained if r.seed == seed}
        if len(set(orders.values())) > 1:
            raise NotComparable(f"the order of the rows differs between {', '.join(orders)} at seed {seed}")
    paths = {r.method: ", ".join(r.decisions[each]["value"] for each in PATH if each in r.decisions) for r in trained}
    if len(set(paths.values())) > 1:  # the losses are equal, but not what they cost
        differ = "; ".join(f"{method} {path}" for method, path in paths.items())
        shared["attention, kernels, loss"] = (
            f"DIFFERENT: {differ}. Memory and speed show this too, not the method alone"
        )
    else:
        shared["attention, kernels, loss"] = next(iter(paths.values()), None)
    shared["order of rows"] = "the same for each method at each seed"
    return shared


def by_method(records: list[RunRecord]) -> dict[str, list[RunRecord]]:
    """The records of each method, in the order given."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.method, []).append(record)
    return groups


def accuracy(records: list[RunRecord], part: str = "exact_match") -> tuple[int, int] | None:
    """Right answers and questions over all seeds, or None where nothing was scored."""
    scores = [r.evaluation[part] for r in records if r.evaluation and r.evaluation[part] is not None]
    return (sum(map(sum, scores)), sum(map(len, scores))) if scores else None


def accuracy_interval(records: list[RunRecord], part: str = "exact_match") -> tuple[float, float]:
    """95 % Wilson interval of the share of right answers, over seeds: they answer the same questions, so each counts once."""
    seeds = sum(bool(r.evaluation and r.evaluation[part] is not None) for r in records)
    return wilson(*(count / seeds for count in accuracy(records, part)))


def _spread(values: list[float | None], digits: int, scale: float = 1.0) -> str:
    measured = [value for value in values if value is not None]  # a run beside others has no speed
    if not measured:
        return "not measured"
    shown = f"{mean(measured) / scale:,.{digits}f}"
    shown = f"{shown} ± {stdev(measured) / scale:.{digits}f}" if len(measured) > 1 else shown
    return shown if len(measured) == len(values) else f"{shown} ({len(measured)} of {len(values)} runs)"


def table(records: list[RunRecord]) -> pandas.DataFrame:
    """One column a method: what was trained, memory, time, losses, score. Means over seeds, ± one standard deviation."""
    columns = {}
    for method, runs in by_method(records).items():
        column: dict[str, str] = {"seed": ", ".join(str(r.seed) for r in runs)}
        if method != "base":
            training = [r.training for r in runs]
            column["trainable parameters"] = f"{training[0]['trainable']:,}"
            column["share of the model"] = f"{100 * training[0]['trainable'] / training[0]['total']:.2f} %"
            column["learning rate"] = f"{runs[0].settings['learning_rate']:g}"
            column["peak memory, GB"] = _spread([r.memory["peak"] for r in runs], 2, GB)
            column["training time, s"] = _spread([t["train_seconds"] for t in training], 0)
            column["tokens per second"] = _spread([t["tokens_per_second"] for t in training], 0)
            column["saved, MB"] = _spread([sum(r.files.values()) for r in runs], 1, 1e6)
            column["trained elements changed"] = _spread([100 * t["changed_share"] for t in training], 2) + " %"
        column["held-out loss"] = _spread([r.evaluation["loss"] for r in runs], 4)
        for part in ("prose", "general", "unrelated"):
            if found := [r.evaluation[part]["loss"] for r in runs if r.evaluation.get(part)]:
                column[f"{part} loss"] = _spread(found, 4)
        for name, part in (("exact match", "exact_match"), ("exact match, larger numbers", "harder")):
            if counts := accuracy(runs, part):
                low, high = accuracy_interval(runs, part)
                column[name] = f"{counts[0]}/{counts[1]} = {100 * counts[0] / counts[1]:.0f} %"
                column[f"{name}, 95 %"] = f"{100 * low:.0f} to {100 * high:.0f} %"
        columns[method] = column
    shipped = all((r.note or "").startswith(REFERENCE_NOTE) for r in records)
    return pandas.DataFrame(columns).fillna("").rename_axis(columns=REFERENCE_NOTE if shipped else None)
