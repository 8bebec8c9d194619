"""What records can say about methods: whether they are comparable, how sure a difference is, and in which words.

Works from records alone: nothing here trains, loads a model or imports torch.
"""

from __future__ import annotations

import math
from statistics import mean, stdev

from helpers.memory import GB
from helpers.records import RunRecord

import pandas



# Student's t that leaves 2.5 % above it, for 1 to 10 degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


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
    trained = [r for r in records if r.method != "base"]
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
        for name, part in (("exact match", "exact_match"), ("exact match, harder", "harder")):
            if counts := accuracy(runs, part):
                low, high = accuracy_interval(runs, part)
                column[name] = f"{counts[0]}/{counts[1]} = {100 * counts[0] / counts[1]:.0f} %"
                column[f"{name}, 95 %"] = f"{100 * low:.0f} to {100 * high:.0f} %"
        columns[method] = column
    return pandas.DataFrame(columns).fillna("")


def side_by_side(records: list[RunRecord]) -> pandas.DataFrame:
    """What each method replied to the same held-out conversations, or to test questions where there are none."""
    part = [(r.evaluation.get("prose") or r.evaluation)["replies"] for r in records]
    columns = {name: [entry[name] for entry in part[0]] for name in ("question", "reference")}
    return pandas.DataFrame(
        columns | {r.method: [e["reply"] for e in replies] for r, replies in zip(records, part, strict=True)}
    )


def interval(values: list[float]) -> tuple[float, float]:
    """The mean of repeated measurements and the half width of its 95 % interval by Student's t; nan for a single one."""
    n = len(values)
    t = STUDENT[n - 2] if 2 <= n < 12 else 1.96
    return mean(values), t * stdev(values) / math.sqrt(n) if n > 1 else math.nan


def rise(runs: list[RunRecord], base: RunRecord, part: str) -> tuple[float, float]:
    """By how much training raised the loss on a part of the evaluation ("prose", "general" or "unrelated"), and the half
    width of the 95 % interval: over seeds, or over the texts where there is one seed.
    """
    before = base.evaluation[part]
    if len(runs) > 1:
        return interval([r.evaluation[part]["loss"] - before["loss"] for r in runs])
    after = runs[0].evaluation[part]
    pairs = zip(after["losses"], before["losses"], strict=True)
    return after["loss"] - before["loss"], interval([(a - b) / n for (a, n), (b, _) in pairs])[1]


def against_prompts(records: list[RunRecord]) -> pandas.DataFrame:
    """What prompts alone reach and what training reaches, on the same first test questions, with 95 % intervals.

    A method with several seeds is shown by the mean of its seeds; its interval counts each question once.
    """
    groups, rows = by_method(records), {}
    prompts = (groups["base"][0].evaluation.get("baselines") if "base" in groups else None) or {}
    asked = next((len(found["right"]) for found in prompts.values() if isinstance(found, dict)), None)
    shares = {f"untouched model, {name}": [found["right"]] for name, found in prompts.items() if name != "guess"}
    for method, runs in groups.items():
        name = "untouched model, the question alone" if method == "base" else f"trained: {method}"
        shares[name] = [r.evaluation["exact_match"][:asked] for r in runs if r.evaluation["exact_match"] is not None]
    if "guess" in prompts:
        rows["random guess"] = {"right, %": f"{100 * prompts['guess']:.0f}", "95 %": ""}
    for name, scores in shares.items():
        if scores:
            total, right = len(scores[0]), sum(map(sum, scores)) / len(scores)
            low, high = wilson(right, total)
            rows[name] = {"right, %": f"{100 * right / total:.0f}", "95 %": f"{100 * low:.0f} to {100 * high:.0f}"}
    return pandas.DataFrame(rows).T


def conclusions(records: list[RunRecord], first: str = "lora", second: str = "full") -> list[str]:
    """Sentences on two methods, computed from their records. A claim about accuracy needs three seeds and their interval."""
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
    parts = {"Accuracy": "exact_match", "Accuracy, harder": "harder"}
    parts = {what: part for what, part in parts.items() if seeds and all(accuracy(runs, part) for runs in both)}
    for what, part in parts.items():
        shares = [[100 * mean(r.evaluation[part]) for r in sorted(runs, key=lambda r: r.seed)] for runs in both]
        apart, half = interval([x - y for x, y in zip(*shares, strict=True)])
        found = f"{what}: {first} answers {mean(shares[0]):.0f} % exactly, {second} {mean(shares[1]):.0f} %; "
        if len(seeds) < 3:
            found += (
                f"no claim about the methods from {len(seeds)} seed{'s' * (len(seeds) > 1)}, three or more are needed"
            )
        else:
            found += f"the difference over {len(seeds)} seeds is {apart:+.1f} ± {half:.1f} points: "
            found += "no difference shown" if abs(apart) <= half else f"{first if apart > 0 else second} is better"
        said.append(f"{found}.")
    if "base" in groups and (before := accuracy(groups["base"])):
        said.append(f"The untouched base answers {before[0]} of {before[1]} exactly.")
    return said
