"""Whether records may be compared, and the first table of a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import mean, stdev

from helpers.comparison.statistics import wilson
from helpers.memory import GB
from helpers.records import REFERENCE_NOTE, RunRecord
from helpers.settings import AFTER_SFT

import pandas


class NotComparable(ValueError):
    """Records of runs that differ in something other than the method; the message says in what."""


@contextmanager
def readable() -> Iterator[None]:
    """One sentence where a record was edited, or was written by a version that kept something else in it."""
    try:
        yield
    except NotComparable:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise NotComparable(f"a record holds what no comparison can use ({what}): run its notebook again") from error


PATH = ("attention", "kernels", "loss")  # decisions that change what a step costs


@readable()
def comparability(records: list[RunRecord]) -> dict[str, object]:
    """What all records share, by name: base model, evaluation rows, and for trained ones the rows in their order.

    Raises:
        NotComparable: names what differs and the two values.
    """
    if not records:
        raise NotComparable("there are no records to compare")
    for run in records:
        if place := run.lacking():
            raise NotComparable(f"the record of {run.method}, seed {run.seed}, lacks {place}: run its notebook again")
    trained = [r for r in records if r.method not in ("base", *AFTER_SFT)]  # those train on their own answers
    timed = [r for r in trained if r.training.get("tokens_per_second")]
    fields = [
        ("base model", records, lambda r: r.model.get("fingerprint")),
        ("evaluation rows", records, lambda r: (r.evaluation or {}).get("fingerprint")),
        ("scored questions", records, lambda r: len((r.evaluation or {}).get("exact_match") or [])),
        ("held-out conversations", records, lambda r: ((r.evaluation or {}).get("prose") or {}).get("fingerprint")),
        ("longest answer", records, lambda r: r.settings.get("max_new_tokens")),
        ("training rows", trained, lambda r: r.data["fingerprints"]["train"]),
        ("supervised tokens", trained, lambda r: r.training.get("supervised_tokens")),
        ("precision", trained, lambda r: r.decisions["precision"]["value"]),
        ("device", trained, lambda r: str(r.device.get("name")).partition(", ")[0]),  # without a processor's threads
        ("device whose speed was measured", timed, lambda r: r.device.get("name")),
    ]
    for seed in sorted({r.seed for r in trained}):
        of_seed = [r for r in trained if r.seed == seed]
        fields.append((f"order of the rows, seed {seed}", of_seed, lambda r: r.data["order"]))
    shared: dict[str, object] = {}
    for name, part, get in fields:
        values = [(f"{r.method}, seed {r.seed},", get(r)) for r in part]
        run, shared[name] = values[0] if values else ("", None)
        for other, value in values:
            if str(value) != str(shared[name]):
                raise NotComparable(
                    f"{name} differ: {run} has {shared[name]}, {other} has {value}; run both with the same settings"
                )
    paths = {r.method: ", ".join(r.decisions[each]["value"] for each in PATH if each in r.decisions) for r in trained}
    shared["attention, kernels, loss"] = next(iter(paths.values()), None)
    if len(set(paths.values())) > 1:  # the losses are equal, but not what they cost
        differ = "; ".join(f"{method} {path}" for method, path in paths.items())
        shared["attention, kernels, loss"] = (
            f"DIFFERENT: {differ}. Memory and speed show this too, not the method alone"
        )
    return shared


def by_method(records: list[RunRecord]) -> dict[str, list[RunRecord]]:
    """The records of each method, in the order given."""
    return {method: [r for r in records if r.method == method] for method in dict.fromkeys(r.method for r in records)}


def accuracy(records: list[RunRecord], part: str = "exact_match") -> tuple[int, int] | None:
    """Right answers and questions over all seeds, or None where nothing was scored."""
    scores = [r.evaluation[part] for r in records if r.evaluation and r.evaluation[part] is not None]
    return (sum(map(sum, scores)), sum(map(len, scores))) if scores else None


def accuracy_interval(records: list[RunRecord], part: str = "exact_match") -> tuple[float, float]:
    """95 % Wilson interval of the share of right answers, over seeds: they answer the same questions, so each counts once."""
    seeds = sum(bool(r.evaluation and r.evaluation[part] is not None) for r in records)
    return wilson(*(count / seeds for count in accuracy(records, part)))


def _spread(values: list[float | None], digits: int, scale: float = 1.0) -> str:
    measured = [value / scale for value in values if value is not None]  # a run beside others has no speed
    if not measured:
        return "not measured"
    shown = f"{mean(measured):,.{digits}f}" + (f" ± {stdev(measured):.{digits}f}" if len(measured) > 1 else "")
    return shown if len(measured) == len(values) else f"{shown} ({len(measured)} of {len(values)} runs)"


@readable()
def table(records: list[RunRecord]) -> pandas.DataFrame:
    """One column a method: what was trained, memory, time, losses, score. Means over seeds, ± one standard deviation."""
    columns = {}
    for method, runs in by_method(records).items():
        column = {"seed": ", ".join(str(r.seed) for r in runs)}
        if method != "base":
            training = [r.training for r in runs]
            column |= {
                "trainable parameters": f"{training[0]['trainable']:,}",
                "share of model and adapter": f"{100 * training[0]['trainable'] / training[0]['total']:.2f} %",
                "learning rate": f"{runs[0].settings['learning_rate']:g}",
                "peak memory, GB": _spread([r.memory["peak"] for r in runs], 2, GB),
                "training time, s": _spread([t["train_seconds"] for t in training], 0),
                "tokens per second": _spread([t["tokens_per_second"] for t in training], 0),
                "saved, MB": _spread([sum(r.files.values()) for r in runs], 1, 1e6),
                "trained elements changed": _spread([t["changed_share"] for t in training], 2, 0.01) + " %",
            }
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
