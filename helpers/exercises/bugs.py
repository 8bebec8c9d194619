"""Checks for the exercises of 10_spot_the_bug: a case to solve, and what hidden devices do to a run."""

from __future__ import annotations

import math

from helpers.data import Data
from helpers.exercises import check, need, unlike
from helpers.exercises.scenes import FAULTS, fit_with_trainer


@check
def case_solved(faults: set, *, case: Data, tokenizer) -> str:
    """The names of the faults in the training rows of a case."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    held_out = {str(e.prompt) for e in case.test}
    truth = {
        "doubled start": any(e.input_ids[:2] == [bos, bos] for e in case.train),
        "masked end": any(eos not in e.labels for e in case.train),
        "leaked test": any(str(e.prompt) in held_out for e in case.train),
    }
    need(faults <= set(FAULTS), f"the faults are called {', '.join(FAULTS)}.")
    ask_again = "A guard stops at its first fault: mend that one, and ask again."
    wrong = " or a ".join(name for name in sorted(faults) if not truth[name])
    need(not wrong, f"no row has a {wrong}. {ask_again}")
    need(len(faults) == sum(truth.values()), f"there is more. {ask_again}")
    return f"{' and '.join(sorted(faults))}. The loss would have fallen all the same."


@check
def steps_of_an_epoch(steps_taken: int, *, model, rows: list, batch_size: int, accumulation: int, devices: int) -> str:
    """Optimizer steps of one epoch if this many GPUs are visible; the Trainer of transformers runs it."""
    truth = fit_with_trainer(model, rows, batch_size, devices, accumulation).state.global_step
    mistakes = (
        (batch_size, "that is without accumulation and on one device."),
        (batch_size * accumulation, "that is on one device."),
        (batch_size * devices, "that is without accumulation."),
    )
    unlike(steps_taken, truth, *((math.ceil(len(rows) / per_step), reason) for per_step, reason in mistakes))
    need(steps_taken == truth, f"you say {steps_taken}. How many rows does one step of the optimizer take in all?")
    return f"{truth} steps of up to {batch_size * accumulation * devices} rows, on {len(rows)} rows."
