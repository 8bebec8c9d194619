"""Checks for the exercises of 04_compare: intervals, paired tests, fair comparisons. Without torch, like that notebook."""

from __future__ import annotations

from helpers.comparison import NotComparable, comparability, paired, wilson
from helpers.exercises import NotYet, check, need
from helpers.records import RunRecord


@check
def questions_needed(n: float, *, share: float, half_width: float) -> str:
    """The number of questions for a Wilson interval of this half width around a share."""

    def half(total: float) -> float:
        low, high = wilson(round(share * total), round(total))
        return (high - low) / 2

    need(n >= 1, "there has to be at least one question.")
    width = f"{100 * half(n):.2f} percentage points to either side"
    need(half(n * 1.02) <= half_width, f"with {n:g} questions it is {width}: too wide.")
    need(half(n * 0.98) >= half_width, f"with {n:g} questions it is {width}: fewer would do.")
    return f"{n:g} questions give {width}. Half of that takes four times as many."


@check
def wins_needed(wins: int, *, losses: int, level: float = 0.05) -> str:
    """The fewest questions that one method alone must get right for p < level, if the other alone got ``losses``."""

    def p(won: int) -> float:
        return paired([1] * won + [0] * losses, [0] * won + [1] * losses)["p"]

    need(wins > losses, f"with {wins} against {losses} it would not even be ahead.")
    score = f"{wins} to {losses}"
    half = "(Half of it would pass: that is the one-sided test, which must be chosen before you look.)"
    need(not p(wins) / 2 < level <= p(wins), f"at {score}, p = {p(wins):.3f}. {half}")
    need(p(wins) < level, f"at {score}, p = {p(wins):.3f}: luck would do that too often.")
    need(p(wins - 1) >= level, f"{score} is enough (p = {p(wins):.3f}), but so is {wins - 1} to {losses}.")
    return f"{score} gives p = {p(wins):.3f}, one fewer p = {p(wins - 1):.3f}."


@check
def refused(unfair: RunRecord, *, records: list[RunRecord]) -> str:
    """A record that may not be compared with the others, for another reason than other evaluation rows."""
    try:
        comparability([*records, unfair])
    except NotComparable as reason:
        rows = "refused for its evaluation rows. Find another difference that spoils a comparison."
        need(not str(reason).startswith("evaluation rows"), rows)
        return f"refused: {reason}."
    changed = [name for name in vars(unfair) if all(getattr(unfair, name) != getattr(r, name) for r in records)]
    seen = f"this record is accepted. Changed: {', '.join(changed) or 'nothing'}."
    raise NotYet(f"{seen} A seed or a rate may differ between two runs; what must not is in the first table of step 1.")
