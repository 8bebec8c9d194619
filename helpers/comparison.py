"""What records can say about methods: whether they are comparable, how sure a difference is, and in which words.

Works from records alone: nothing here trains, loads a model or imports torch.
"""

from __future__ import annotations

import math
from statistics import mean, stdev

from helpers.memory import GB
from helpers.records import RunRecord
from helpers.settings import AFTER_SFT

import pandas

# Figures of AMD's published walkthroughs, as printed there, with what has to be known to read them.
PUBLISHED = (
    {"source": "AMD blog, 2024-02-01", "device": "one MI250 (two dies)", "method": "lora", "seconds": 484.8, "final loss": 1.377,
     "caveat": "fp32; 1,000 rows, batch 4"},
    {"source": "AMD blog, 2024-02-01", "device": "one MI250 (two dies)", "method": "full", "seconds": 10993.8, "final loss": 1.368,
     "caveat": "fp32; learning rate 100 times lower; memory full, so mostly waiting"},
    {"source": "ROCm docs, 2024", "device": "MI300X", "method": "lora", "seconds": 197.5, "final loss": 1.417,
     "caveat": "fp32; 125 steps of 8 at batch 4: two devices took part"},
    {"source": "ROCm docs, 2024", "device": "MI300X", "method": "full", "seconds": 419.5, "final loss": 1.412,
     "caveat": "as printed, this run trains the LoRA adapter again, not all parameters"},
)  # fmt: skip


class NotComparable(ValueError):
    """Records of runs that differ in something other than the method; the message says in what."""


def comparability(records: list[RunRecord]) -> dict[str, object]:
    """What all records share, checked: base model, evaluation rows, and for trained ones the rows in their order.

    Returns:
        The shared values by name.

    Raises:
        NotComparable: names the field and the two values.
    """
    if not records:
        raise NotComparable("there are no records to compare")
    fields = {
        "base model": lambda r: r.model.get("fingerprint"),
        "evaluation rows": lambda r: (r.evaluation or {}).get("fingerprint"),
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
    trained = [r for r in records if r.method not in ("base", *AFTER_SFT)]  # the others train on their own answers
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
    shared["order of rows"] = "the same for each method at each seed"
    return shared


def wilson(right: float, total: float, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927), as two shares between 0 and 1."""
    if total == 0:
        return 0.0, 1.0
    share = right / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired(first: list[int], second: list[int]) -> dict[str, float]:
    """Two models on the same questions: in how many one did better, and the exact two-sided sign test on those.

    With results of 0 and 1 this is the exact McNemar test (McNemar 1947); with the number of seeds that got a question
    right, each question still counts once, so seeds are not mistaken for more questions.

    Args:
        first, second: one number a question, in the same order.

    Returns:
        ``only_first`` and ``only_second`` (questions where that one did better), ``both`` (equal and right at least
        once), ``neither`` (equal, never right), and ``p``.

    Raises:
        ValueError: if the lists differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"paired results differ in length: {len(first)} and {len(second)}")
    pairs = list(zip(first, second, strict=True))
    only_first, only_second = sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    return {
        "both": sum(a == b > 0 for a, b in pairs), "only_first": only_first, "only_second": only_second,
        "neither": sum(a == b == 0 for a, b in pairs), "p": min(1.0, 2 * tail),
    }  # fmt: skip


def right_per_question(records: list[RunRecord], seeds: list[int], part: str = "exact_match") -> list[int]:
    """For each question of a part, in how many of these seeds it was answered right."""
    scores = [r.evaluation[part] for r in records if r.seed in seeds]
    return [sum(results) for results in zip(*scores, strict=True)]


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
        for name, part in (("exact match", "exact_match"), ("exact match, new phrasing", "harder")):
            if counts := accuracy(runs, part):
                low, high = accuracy_interval(runs, part)
                column[name] = f"{counts[0]}/{counts[1]} = {100 * counts[0] / counts[1]:.0f} %"
                column[f"{name}, 95 %"] = f"{100 * low:.0f} to {100 * high:.0f} %"
        columns[method] = column
    return pandas.DataFrame(columns).fillna("")


def conclusions(records: list[RunRecord], first: str = "lora", second: str = "full", level: float = 0.05) -> list[str]:
    """Sentences on two methods, computed from their records; "no difference shown" where the test shows none."""
    groups = by_method(records)
    if first not in groups or second not in groups:
        raise NotComparable(f"both {first} and {second} are needed, there are {', '.join(groups) or 'no records'}")
    a, b = groups[first], groups[second]
    said = []

    def average(runs: list[RunRecord], get) -> float:
        return mean(get(r) for r in runs)

    for what, get in (
        ("parameters trained", lambda r: r.training["trainable"]),
        ("peak memory", lambda r: r.memory["peak"]),
        ("bytes saved", lambda r: sum(r.files.values())),
    ):
        x, y = average(a, get), average(b, get)
        more, less, ratio = (second, first, y / x) if y >= x else (first, second, x / y)
        times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
        said.append(f"{what.capitalize()}: {more} takes {times} times what {less} takes.")
    timed = [[r for r in runs if r.training["tokens_per_second"]] for runs in (a, b)]
    if all(timed):
        x, y = (average(runs, lambda r: r.training["tokens_per_second"]) for runs in timed)
        faster, ratio = (first, x / y) if x >= y else (second, y / x)
        said.append(f"Speed: {faster} trains {ratio:.2f} times as many tokens a second.")
    seeds = sorted({r.seed for r in a} & {r.seed for r in b})
    both = [[r for r in runs if r.seed in seeds] for runs in (a, b)]
    parts = {"Accuracy": "exact_match", "Accuracy, new phrasing": "harder"}
    parts = {what: part for what, part in parts.items() if seeds and all(accuracy(runs, part) for runs in both)}
    for what, part in parts.items():
        test = paired(*(right_per_question(runs, seeds, part) for runs in both))
        shares = [100 * right / total for right, total in (accuracy(runs, part) for runs in both)]
        counts = f"{first} did better on {test['only_first']} questions, {second} on {test['only_second']}; p = {test['p']:.2g}"
        verdict = "no difference shown"
        if test["p"] < level:
            verdict = f"{first if test['only_first'] > test['only_second'] else second} is better on these questions"
        said.append(
            f"{what}: {first} answers {shares[0]:.0f} % exactly, {second} {shares[1]:.0f} %; {verdict} ({counts})."
        )
    if parts and len(seeds) < 3:
        said.append(
            f"This rests on {len(seeds)} seed{'s' * (len(seeds) > 1)}: the test covers the choice of questions, not "
            "the luck of a run. Three seeds or more are needed for a claim about the methods."
        )
    if "base" in groups and (before := accuracy(groups["base"])):
        said.append(f"The untouched base answers {before[0]} of {before[1]} exactly.")
    return said
