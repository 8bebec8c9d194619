"""What the records show: prompts beside training, a verdict per seed and over seeds, learning beside forgetting."""

from __future__ import annotations

from contextlib import suppress
from statistics import mean

from helpers.comparison.statistics import bootstrap, over_seeds, paired, wilson
from helpers.comparison.tables import NotComparable, accuracy, by_method
from helpers.records import RunRecord

import pandas


def _share(right: float, questions: int, **named) -> dict:
    low, high = wilson(right, questions)
    return named | {"right": right, "questions": questions, "low": low, "high": high}


def by_family(records: list[RunRecord]) -> pandas.DataFrame:
    """Right answers by family and method: ``right`` (mean over seeds), ``questions``, ``low`` and ``high`` (95 %, Wilson)."""
    rows = []
    for method, runs in by_method([r for r in records if r.evaluation["exact_match"]]).items():
        over = [mean(each) for each in zip(*(r.evaluation["exact_match"] for r in runs), strict=True)]
        by = pandas.Series(over).groupby(runs[0].evaluation["families"], sort=False)
        rows += [_share(each.sum(), len(each), family=family, method=method) for family, each in by]
    return pandas.DataFrame(rows)


def baselines(records: list[RunRecord]) -> pandas.DataFrame:
    """What a random guess, prompts alone and training get right, on the same first test questions, with 95 % intervals.

    Empty where no record of the base holds the prompts.
    """
    groups = by_method(records)
    base = next((r.evaluation for r in groups.pop("base", []) if r.evaluation.get("baselines")), None)
    if base is None:
        return pandas.DataFrame()
    prompts = {name: found["right"] for name, found in base["baselines"].items() if name != "guess"}
    asked = len(prompts["instructed"])
    right = {
        "random guess": base["baselines"]["guess"] * asked,
        "base, asked as trained": sum(base["exact_match"][:asked]),
    }
    right |= {f"base, {name}": sum(found) for name, found in prompts.items()}
    right |= {m: mean(sum(r.evaluation["exact_match"][:asked]) for r in runs) for m, runs in groups.items()}
    return pandas.DataFrame([_share(number, asked, way=way) for way, number in right.items()])


def side_by_side(records: list[RunRecord]) -> pandas.DataFrame:
    """What each method replied to the same held-out conversations, or to test questions where there are none."""
    part = [(r.evaluation.get("prose") or r.evaluation)["replies"] for r in records]
    columns = {name: [entry[name] for entry in part[0]] for name in ("question", "reference")}
    return pandas.DataFrame(
        columns | {r.method: [e["reply"] for e in replies] for r, replies in zip(records, part, strict=True)}
    )


def verdicts(
    records: list[RunRecord], first: str = "lora", second: str = "full", part: str = "exact_match"
) -> pandas.DataFrame:
    """For each seed that both methods share, what the paired test over questions says of these two runs."""
    scored = {(r.method, r.seed): r.evaluation[part] for r in records if r.evaluation and r.evaluation[part]}
    rows = []
    for seed in sorted({seed for method, seed in scored if method == first and (second, seed) in scored}):
        a, b = scored[first, seed], scored[second, seed]
        p, ahead = paired(a, b)["p"], first if sum(a) > sum(b) else second
        says = f"{ahead} is better" if p < 0.05 else "no difference shown"
        rows.append({"seed": seed, first: sum(a), second: sum(b), "questions": len(a), "p": p, "this seed says": says})
    if not rows:
        raise NotComparable(f"{first} and {second} have no scored seed in common; train both with the same seed")
    return pandas.DataFrame(rows)


def _items(record: RunRecord, part: str) -> list | None:
    """For each held-out item of a part its sum and the number of what was summed; None where it was not measured."""
    found = record.evaluation.get(part) if part != "loss" else record.evaluation
    if found and part in ("exact_match", "harder"):
        return [(right, 1) for right in found]
    return (found or {}).get("losses")


def gain_and_forgetting(
    records: list[RunRecord], gain: str = "exact_match", forgotten: str = "general"
) -> pandas.DataFrame:
    """One point per method, rank and rate: how training moved what it was for, and what it was not for.

    Args:
        gain, forgotten: ``exact_match`` or ``harder`` (a share of right answers), or ``loss``, ``prose``, ``general`` or
            ``unrelated`` (nats per token, where less is better).

    Returns:
        ``gain`` and ``forgetting``: the change from the untouched base, each with the ends ``_low`` and ``_high`` of a 95 %
        interval that draws both items and seeds again.

    Raises:
        NotComparable: where no record of the untouched base holds both parts.
    """
    base = next((r for r in records if r.method == "base" and _items(r, gain) and _items(r, forgotten)), None)
    if base is None:
        raise NotComparable(f"no record of the untouched base holds {gain} and {forgotten}; measure it with this code")
    points: dict[tuple, list[RunRecord]] = {}
    for r in records:
        rank = r.settings["rank"] if r.method != "full" else None
        if r.method != "base" and _items(r, gain) and _items(r, forgotten):
            points.setdefault((r.method, rank, r.settings["learning_rate"]), []).append(r)
    rows = []
    for (method, rank, rate), runs in points.items():
        row = {"method": method, "rank": rank, "learning rate": rate, "seeds": len(runs)}
        for name, part in (("gain", gain), ("forgetting", forgotten)):
            moved = bootstrap(_items(base, part), [_items(r, part) for r in runs])
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), moved, strict=True))
        rows.append(row)
    return pandas.DataFrame(rows)


def conclusions(records: list[RunRecord], first: str = "lora", second: str = "full") -> list[str]:
    """Sentences on two methods, computed from their records; "no difference shown" where an interval over seeds shows none."""
    groups = by_method(records)
    if first not in groups or second not in groups:
        raise NotComparable(f"both {first} and {second} are needed, there are {', '.join(groups) or 'no records'}")
    said = []
    for what, get in (
        ("Parameters trained", lambda r: r.training["trainable"]),
        ("Peak memory", lambda r: r.memory["peak"]),
        ("Bytes saved", lambda r: sum(r.files.values())),
        ("Tokens per second", lambda r: r.training["tokens_per_second"]),
    ):
        values = {method: list(filter(None, map(get, groups[method]))) for method in (first, second)}
        if values[first] and values[second]:
            less, more = sorted(values, key=lambda method: mean(values[method]))
            ratio = mean(values[more]) / mean(values[less])
            times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
            said.append(f"{what}: {more} has {times} times that of {less}.")
    for what, part in (("Accuracy", "exact_match"), ("Accuracy, larger numbers", "harder")):
        with suppress(NotComparable):  # nothing was scored
            said.append(_verdict(what, verdicts(records, first, second, part), first, second))
    if "base" in groups and (before := accuracy(groups["base"])):
        said.append(f"The untouched base answers {before[0]} of {before[1]} exactly.")
    return said


def _verdict(what: str, seeds: pandas.DataFrame, first: str, second: str) -> str:
    """One sentence on two methods: over three seeds or more an interval decides, else the runs are only described."""
    x, y = (100 * (seeds[name] / seeds["questions"]).mean() for name in (first, second))
    counts = f"{what}: {first} answers {x:.0f} % exactly, {second} {y:.0f} %"
    if len(seeds) < 3:
        return (
            f"{counts}, with {len(seeds)} seed{'s' * (len(seeds) > 1)}. This describes these runs: another seed can turn the "
            "order round, so three seeds or more are needed for a claim about the methods."
        )
    differences = 100 * (seeds[first] - seeds[second]) / seeds["questions"]
    average, low, high = over_seeds(list(differences))
    ahead = f"{first if average > 0 else second} is better on these questions"
    ahead = "no difference shown" if low <= 0 <= high else ahead
    return f"{counts}; {ahead}: the difference over {len(seeds)} seeds is {average:+.1f} points, 95 % {low:+.1f} to {high:+.1f}."
