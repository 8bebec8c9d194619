"""What the records show: prompts beside training, a verdict per seed and over seeds, learning beside forgetting."""

from __future__ import annotations

from contextlib import suppress
from statistics import mean

from helpers.comparison.statistics import bootstrap, over_seeds, paired, wilson
from helpers.comparison.tables import NotComparable, accuracy, by_method, readable
from helpers.records import RunRecord

import pandas

# in sentences
NAMES = {"lora": "LoRA", "full": "full fine-tuning", "qlora": "QLoRA", "dora": "DoRA", "rslora": "rsLoRA"}
NAMES |= {"dpo": "DPO", "grpo": "GRPO"}


def _share(right: float, questions: int, **named) -> dict:
    low, high = wilson(right, questions)
    return named | {"right": right, "questions": questions, "low": low, "high": high}


@readable()
def by_family(records: list[RunRecord]) -> pandas.DataFrame:
    """Right answers by family and method: ``right`` (mean over seeds), ``questions``, ``low`` and ``high`` (95 %, Wilson)."""
    rows = []
    for method, runs in by_method([r for r in records if r.evaluation["exact_match"]]).items():
        over = [mean(each) for each in zip(*(r.evaluation["exact_match"] for r in runs), strict=True)]
        by = pandas.Series(over).groupby(runs[0].evaluation["families"], sort=False)
        rows += [_share(each.sum(), len(each), family=family, method=method) for family, each in by]
    return pandas.DataFrame(rows)


@readable()
def baselines(records: list[RunRecord]) -> pandas.DataFrame:
    """What a random guess, prompts alone and training get right, on the same first test questions, with 95 % intervals.

    The score of the guess is computed, not sampled, so it has no interval. Empty where no record of the base holds the prompts.
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
    found = pandas.DataFrame([_share(number, asked, way=way) for way, number in right.items()])
    found.loc[found["way"] == "random guess", ["low", "high"]] = float("nan")
    return found


@readable()
def side_by_side(records: list[RunRecord]) -> pandas.DataFrame:
    """What each method replied to the same held-out conversations, or to test questions where there are none."""
    part = [(r.evaluation.get("prose") or r.evaluation)["replies"] for r in records]
    shared = min(map(len, part))  # a record may keep more of them
    columns = {name: [entry[name] for entry in part[0][:shared]] for name in ("question", "reference")}
    return pandas.DataFrame(
        columns | {r.method: [e["reply"] for e in replies[:shared]] for r, replies in zip(records, part, strict=True)}
    )


@readable()
def verdicts(
    records: list[RunRecord], first: str = "lora", second: str = "full", part: str = "exact_match"
) -> pandas.DataFrame:
    """For each seed that both methods share, what the paired test over questions says of these two runs."""
    scored = {(r.method, r.seed): r.evaluation[part] for r in records if r.evaluation and r.evaluation[part]}
    rows = []
    for seed in sorted({seed for method, seed in scored if method == first and (second, seed) in scored}):
        a, b = scored[first, seed], scored[second, seed]
        p, ahead = paired(a, b)["p"], first if sum(a) > sum(b) else second
        says = f"{NAMES.get(ahead, ahead)} is better" if p < 0.05 else "cannot be decided"
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


@readable()
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


PARTS = {  # what is measured: its name, a unit, and what a point of it is in that unit
    "exact_match": ("right answers", "points", 100),
    "harder": ("right answers, larger numbers", "points", 100),
    "loss": ("loss of test questions", "nats per token", 1),
    "prose": ("loss of new conversations", "nats per token", 1),
    "general": ("loss of a general text", "nats per token", 1),
    "unrelated": ("loss of unrelated questions", "nats per token", 1),
}


@readable()
def differences(records: list[RunRecord], first: str = "lora", second: str = "full") -> pandas.DataFrame:
    """For each part, how far the first method is from the second on the same items, seed by seed, with a 95 % interval.

    The interval is the wider of two: a bootstrap over items and seeds, and, from two seeds on, Student's over the seeds. With
    one seed it leaves out the luck of a run, and where few answers differ it is too narrow: there the exact test has to agree.

    Returns:
        One row per part that both methods hold: ``part``, ``what``, ``difference``, ``low``, ``high``, ``unit``, ``seeds``,
        ``says``, and ``interval``, which puts the numbers into words.
    """
    runs = {(r.method, r.seed): r for r in records}
    seeds = sorted(s for method, s in runs if method == first and (second, s) in runs)
    rows = []
    for part, (name, unit, scale) in PARTS.items():
        pairs = [[_items(runs[method, seed], part) for method in (first, second)] for seed in seeds]
        if not pairs or not all(a and b for a, b in pairs):
            continue
        apart = [[(x - y, n) for (x, n), (y, _) in zip(a, b, strict=True)] for a, b in pairs]
        average, low, high = (scale * end for end in bootstrap([(0, n) for _, n in apart[0]], apart))
        if len(seeds) > 1:
            by_seed = [scale * sum(x for x, _ in each) / sum(n for _, n in each) for each in apart]
            low, high = min(low, over_seeds(by_seed)[1]), max(high, over_seeds(by_seed)[2])
        ahead = NAMES.get(first, first) if (average > 0) == (unit == "points") else NAMES.get(second, second)
        decided = not low <= 0 <= high
        if unit == "points" and len(seeds) == 1:
            decided &= paired(*([right for right, _ in items] for items in pairs[0]))["p"] < 0.05
        says = f"{ahead} is better{' in this run' * (len(seeds) == 1)}" if decided else "cannot be decided"
        digits = 1 if unit == "points" else 3
        words = f"{average:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f}) {unit}"
        found = {"difference": average, "low": low, "high": high, "unit": unit, "seeds": len(seeds), "says": says}
        rows.append({"part": part, "what": name} | found | {"interval": words})
    return pandas.DataFrame(rows)


@readable()
def conclusions(records: list[RunRecord], first: str = "lora", second: str = "full") -> list[str]:
    """Sentences on two methods, computed from their records; "cannot be decided" where an interval holds zero."""
    groups = by_method(records)
    if first not in groups or second not in groups:
        raise NotComparable(f"both {first} and {second} are needed, there are {', '.join(groups) or 'no records'}")
    a, b = groups[first], groups[second]
    found = _costs(a, b, NAMES.get(first, first), NAMES.get(second, second))
    apart = {row["part"]: row for _, row in differences(records, first, second).iterrows()}
    for what, part in (("Accuracy", "exact_match"), ("Accuracy, larger numbers", "harder")):
        with suppress(NotComparable):  # nothing was scored
            seeds = verdicts(records, first, second, part)
            found.append(_verdict(what, seeds, first, second, apart[part]["interval"]))
    for row in (apart[part] for part in ("general", "unrelated") if part in apart):
        names = f"{NAMES.get(first, first)} minus {NAMES.get(second, second)}"
        hint = " This is a hint: another seed can reverse it." if row["seeds"] < 3 and "better" in row["says"] else ""
        found.append(f"Forgetting, {row['what']}: {names} is {row['interval']}: {row['says']}.{hint}")
    if "base" in groups and (before := accuracy(groups["base"])):
        found.append(f"The untouched base answers {before[0]} of {before[1]} exactly.")
        if len(ways := baselines(groups["base"])):
            best = ways[ways["way"] != "random guess"].nlargest(1, "right").iloc[0]
            found.append(
                f"The best way to ask it ({best['way']}) gets {best['right']:.0f} of {best['questions']} right."
            )
    return found


def _costs(a: list[RunRecord], b: list[RunRecord], first: str, second: str) -> list[str]:
    """Sentences on what two methods train, hold in memory and save, and on their speed."""

    def average(runs: list[RunRecord], get) -> float:
        return mean(get(r) for r in runs)

    found = []
    for words, get in (
        ("trains {} times as many parameters as", lambda r: r.training["trainable"]),
        ("needs {} times as much memory at its peak as", lambda r: r.memory["peak"]),
        ("fills {} times as much disk space as", lambda r: sum(r.files.values())),
    ):
        x, y = average(a, get), average(b, get)
        more, less, ratio = (second, first, y / x) if y >= x else (first, second, x / y)
        times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"
        found.append(f"{more[0].upper()}{more[1:]} {words.format(times)} {less}.")
    timed = [[r for r in runs if r.training["tokens_per_second"]] for runs in (a, b)]
    if all(timed):
        x, y = (average(runs, lambda r: r.training["tokens_per_second"]) for runs in timed)
        faster, ratio = (first, x / y) if x >= y else (second, y / x)
        found.append(f"Speed: {faster} trains {100 * ratio - 100:.0f} % more tokens per second.")
    return found


def _verdict(what: str, seeds: pandas.DataFrame, first: str, second: str, apart: str) -> str:
    """One sentence on two methods: over three seeds or more an interval decides, else the runs are only described."""
    x, y = (100 * (seeds[name] / seeds["questions"]).mean() for name in (first, second))
    one, two = NAMES.get(first, first), NAMES.get(second, second)
    counts = f"{what}: {one} answers {x:.1f} % of {seeds['questions'][0]} questions, {two} {y:.1f} %"
    if len(seeds) < 3:
        return (
            f"{counts}, with {len(seeds)} seed{'s' * (len(seeds) > 1)}; question by question the difference is {apart}. This describes these runs: another seed can reverse the "
            "order, so a claim about the methods needs three seeds or more."
        )
    differences = 100 * (seeds[first] - seeds[second]) / seeds["questions"]
    average, low, high = over_seeds(list(differences))
    ahead = "cannot be decided" if low <= 0 <= high else f"{one if average > 0 else two} is better on these questions"
    return f"{counts}; {ahead}: the difference over {len(seeds)} seeds is {average:+.1f} points, 95 % {low:+.1f} to {high:+.1f}."
