"""Checks for the exercises of 04_compare and 12_rank_and_rate: intervals, paired tests, seeds. Without torch, like these."""

from statistics import stdev

from helpers.comparison import NotComparable, comparability, over_seeds, paired, wilson
from helpers.exercises import NotYet, check, need
from helpers.records import RunRecord


@check
def questions_needed(n: float, *, share: float, half_width: float) -> str:
    """The number of questions for a Wilson interval of this half width around a share."""

    def half(total: float) -> float:
        low, high = wilson(round(share * total), round(total))
        return (high - low) / 2

    width = f"{n:g} questions give {100 * half(n):.2f} percentage points to either side"
    need(half(n * 1.02) <= half_width, f"{width}: too wide.")
    need(half(n * 0.98) >= half_width, f"{width}: fewer would do.")
    return f"{width}. Half of that takes four times as many."


@check
def wins_needed(wins: int, *, losses: int, level: float = 0.05) -> str:
    """The fewest questions that one method alone must get right for p < level, if the other alone got ``losses``."""
    p, fewer = (paired([1] * w + [0] * losses, [0] * w + [1] * losses)["p"] for w in (wins, wins - 1))
    score = f"at {wins} to {losses}, p = {p:.3f}"
    half = "Half of it would pass: that is the one-sided test, which must be chosen before you look."
    need(p < level, f"{score}: luck would do that too often. {half if p / 2 < level else ''}")
    need(fewer >= level, f"{score}, but {wins - 1} to {losses} is enough, too (p = {fewer:.3f}).")
    return f"{score}; with one fewer it is {fewer:.3f}."


@check
def seeds_needed(n: int, *, differences: list[float], half_width: float) -> str:
    """The fewest seeds whose mean difference has an interval this narrow, if they vary as the given ones do."""
    spread = stdev(differences)

    def half(seeds: int) -> float:
        """Half the interval of so many seeds with this standard deviation: that of 0 and +-1 sets the scale."""
        need(seeds >= 2, "one seed says nothing about how much seeds vary.")
        values = [(-1) ** i * 1.0 for i in range(seeds - seeds % 2)] + [0.0] * (seeds % 2)
        average, low, _ = over_seeds(values)
        return (average - low) * spread / stdev(values)

    width = f"{n} seeds give {half(n):.1f} points to either side"
    need(half(n) <= half_width, f"{width}: too wide. Student's t falls with n, and so does 1 / sqrt(n).")
    need(n == 2 or half(n - 1) > half_width, f"{width}: fewer would do.")
    return f"{width}. To see less than that, make the runs vary less: more training rows, a lower rate, more questions."


@check
def refused(unfair: RunRecord, *, records: list[RunRecord]) -> str:
    """A record that may not be compared with the others, for another reason than other evaluation rows."""
    try:
        comparability([*records, unfair])
    except NotComparable as reason:
        rows = "refused for its evaluation rows. Find another difference that spoils a comparison."
        need(not str(reason).startswith("evaluation rows"), rows)
        return f"refused: {reason}."
    raise NotYet(
        "this record is accepted. A seed or a rate may differ; what must not is in the first table of section 1."
    )
