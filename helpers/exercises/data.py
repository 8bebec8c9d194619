"""Checks for the exercises of 01_data: rows, labels, end tokens."""

from __future__ import annotations

from helpers.data import Example, encode, prepare
from helpers.exercises import check, need, number
from helpers.settings import IGNORED, Settings
from helpers.sources import DataError


@check
def smallest_max_length(length, *, settings: Settings, tokenizer) -> str:
    """The smallest ``max_length`` at which no row of any split is dropped."""

    def dropped(limit: int) -> int | None:
        try:
            return prepare(settings.change(max_length=limit), tokenizer, max_lost=1).counts["dropped_too_long"]
        except DataError:
            return None  # a whole split was lost

    length = int(number(length, "length"))
    need(length >= 1, f"a limit of {length} tokens drops everything.")
    lost = dropped(length)
    need(lost is not None, f"at {length} tokens a whole split is lost.")
    need(lost == 0, f"at {length} tokens, {lost} rows are dropped. Did you look at all splits, or at one of them?")
    need(dropped(length - 1) != 0, f"{length} loses no row, but {length - 1} loses none either.")
    return f"at {length - 1} tokens the first row is lost. A row as long as the limit is kept."


@check
def never_stops(broken, *, example: Example, tokenizer) -> str:
    """A row with the same tokens that teaches its answer and nothing about where that ends."""
    need(isinstance(broken, Example), f"broken should be an Example like the one it was copied from, not {broken!r}.")
    need(
        broken.input_ids == example.input_ids,
        "input_ids changed. The model should read the same tokens; break the labels.",
    )
    need(
        len(broken.labels) == len(example.labels),
        "there has to be one label for each token; mask a token, do not remove it.",
    )
    eos = tokenizer.eos_token_id
    need(
        eos not in broken.labels,
        f"{tokenizer.eos_token} is still among the labels, so the row still teaches where to stop.",
    )
    changed = [(a, b) for a, b in zip(example.labels, broken.labels, strict=True) if a != b]
    need(all(b == IGNORED for _, b in changed), f"a masked token has the label {IGNORED}, not {changed[0][1]}.")
    need(
        all(a == eos for a, _ in changed),
        f"{len(changed)} labels changed, some of them of the answer. Leave the answer supervised and mask its end only.",
    )
    return "the loss of this row looks as healthy as before. That is why a guard looks for the end token, and no one's eye."


@check
def two_turns(talk, ends, *, tokenizer) -> str:
    """A conversation of two questions and two answers, and how many of its labels are the end token."""
    roles = [m.get("role") for m in talk]
    need(
        [r for r in roles if r != "system"] == ["user", "assistant"] * 2,
        f"the roles are {roles}; two questions, each followed by its answer, are user, assistant, user, assistant.",
    )
    labels = encode(Example(talk), tokenizer).labels
    truth = labels.count(tokenizer.eos_token_id)
    said = number(ends, "ends")
    need(
        said != 1 or truth == 1,
        "not only the last answer is supervised: a model has to learn to end each of its turns.",
    )
    need(said == truth, f"{said:g} is not what `encode` gives. Count the turns that the model itself has to write.")
    return (
        f"each of the {truth} answers is supervised up to its end token; {labels.count(IGNORED)} tokens are only read."
    )
