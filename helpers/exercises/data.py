"""Checks for the exercises of 01_data: rows, labels, end tokens."""

from __future__ import annotations

from helpers.data import Example, encode, prepare
from helpers.exercises import check, expect, need
from helpers.settings import IGNORED, Settings
from helpers.sources import DataError


@check
def smallest_max_length(length: int, *, settings: Settings, tokenizer) -> str:
    """The smallest ``max_length`` at which no row of any split is dropped."""

    def dropped(limit: int) -> int | None:
        try:
            return prepare(settings.change(max_length=limit), tokenizer, max_lost=1).counts["dropped_too_long"]
        except DataError:
            return None  # a whole split was lost

    need(length >= 1, f"a limit of {length} tokens drops everything.")
    lost = dropped(length)
    need(lost is not None, f"at {length} tokens a whole split is lost.")
    need(lost == 0, f"at {length} tokens, {lost} rows are dropped. Did you look at all splits, or only at one of them?")
    need(dropped(length - 1) != 0, f"{length} loses no row, but {length - 1} loses none either.")
    return f"at {length - 1} tokens the first row is lost. A row as long as the limit stays."


@check
def never_stops(broken: Example, *, example: Example, tokenizer) -> str:
    """A row with the same tokens that teaches its answer and nothing about where the answer ends."""
    eos, before, after = tokenizer.eos_token_id, example.labels, broken.labels
    need(broken.input_ids == example.input_ids, "input_ids changed. Leave them, and break the labels.")
    need(len(after) == len(before), "there is one label for each token: mask a token, do not remove it.")
    need(eos not in after, f"{tokenizer.eos_token} is still among the labels, so the row still teaches where to stop.")
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    wrong = [label for _, label in changed if label != IGNORED]
    need(not wrong, f"a masked token has the label {IGNORED}, not {wrong[:1]}.")
    many = f"{len(changed)} labels changed, some of them of the answer. Mask only its end."
    need(all(label == eos for label, _ in changed), many)
    return "the loss of this row looks as healthy as before. That is why a guard looks for the end token."


@check
def two_turns(talk: list[dict], ends: float, *, tokenizer) -> str:
    """A conversation of two questions and two answers, and how many of its labels are the end token."""
    roles = [message.get("role") for message in talk]
    order = f"the roles are {roles}; two questions with their answers are user, assistant, user, assistant."
    need([role for role in roles if role != "system"] == ["user", "assistant"] * 2, order)
    labels = encode(Example(talk), tokenizer).labels
    truth = labels.count(tokenizer.eos_token_id)
    last = "more than the last answer is supervised: a model has to learn to end each of its turns."
    count = f"{ends:g} is not what `encode` gives. Count the turns that the model itself has to write."
    expect(ends, truth, count, (1, last))
    read = labels.count(IGNORED)
    return f"each of the {truth} answers is supervised up to its end token; {read} tokens are only read."
