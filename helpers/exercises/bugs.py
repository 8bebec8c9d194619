"""Checks for the exercises of 10_spot_the_bug: a case to solve, and what hidden devices do to a run."""

from __future__ import annotations

import math

from helpers.data import Data
from helpers.exercises import check, need, number
from helpers.exercises.scenes import FAULTS, fit_with_trainer


@check
def case_solved(faults, *, case: Data, tokenizer) -> str:
    """The names of the faults in the training rows of a case."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    held_out = {str(e.prompt) for e in case.test}
    truth = {
        "doubled start": any(e.input_ids[:2] == [bos, bos] for e in case.train),
        "masked end": any(eos not in e.labels for e in case.train),
        "leaked test": any(str(e.prompt) in held_out for e in case.train),
    }
    said = {faults} if isinstance(faults, str) else set(faults)
    need(said <= set(FAULTS), f"the faults are called {', '.join(FAULTS)}.")
    wrong = [name for name in said if not truth[name]]
    need(not wrong, f"no row has a {' or a '.join(wrong)}. A guard stops at its first fault: mend that, and ask again.")
    need(len(said) == sum(truth.values()), "there is more. A guard stops at its first fault: mend that, and ask again.")
    return f"{' and '.join(sorted(said))}. The loss would have fallen all the same."


@check
def steps_of_an_epoch(steps_taken, *, model, rows: list, batch_size: int, accumulation: int, devices: int) -> str:
    """Optimizer steps of one epoch if so many GPUs are visible; the Trainer of transformers runs it."""
    said = number(steps_taken, "steps_taken")
    taken = fit_with_trainer(model, rows, batch_size, devices, accumulation).state.global_step
    for rows_a_step, otherwise in (
        (batch_size, "that is without accumulation and on one device."),
        (batch_size * accumulation, "that is on one device."),
        (batch_size * devices, "that is without accumulation."),
    ):
        need(said == taken or said != math.ceil(len(rows) / rows_a_step), otherwise)
    need(said == taken, f"you said {said:g}. How many rows does one step of the optimizer take in all?")
    return f"{taken} steps of up to {batch_size * accumulation * devices} rows, on {len(rows)} rows."
