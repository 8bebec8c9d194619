"""Checks for the exercises of 11_after_sft: advantages, a reward that resists cheating, the first loss of DPO."""

import math
from collections.abc import Callable
from statistics import mean, pstdev, stdev

from helpers.exercises import check, expect, need
from helpers.sources import answer_of


@check
def group_advantages(advantages: Callable) -> str:
    """The advantages of the answers to one question, from their rewards."""
    flat = list(advantages([1.0] * 8))
    need(flat == [0] * 8, f"eight equal rewards teach nothing, and yours are {flat}.")
    for rewards in ([1.0, 0.0, 0.0, 0.0], [1.1, 0.1, 1.1, 0.0, 0.1, 0.1, 0.1, 1.1]):
        got, centre = [float(each) for each in advantages(rewards)], mean(rewards)
        need(len(got) == len(rewards), f"{len(rewards)} rewards give {len(got)} advantages.")
        scaled = ([(reward - centre) / spread(rewards) for reward in rewards] for spread in (pstdev, stdev))
        fits = any(all(map(lambda a, b: abs(a - b) < 0.01, got, wanted)) for wanted in scaled)
        steps = "subtract the mean of the group, and divide the differences by its standard deviation."
        need(fits, f"for {rewards} they are {got}: {steps}")
    return "better than the mean of the group is pushed up, worse is pushed down, and equal rewards move nothing."


@check
def honest_reward(reward: Callable, *, references: list[str]) -> str:
    """A reward from 0 to 1 that pays for the right number only; tried on replies that cheat."""
    for reference in references:
        truth = answer_of(reference)
        score = float(reward(reference, reference))
        need(score == 1, f"the reference itself earns {score:g}, not 1.")
        cheats = {
            "only repeats numbers": f"{truth} " * 30,
            "ends in a wrong number": f"{reference} The answer is: {truth}1",
            "names the form and no number": "The answer is:",
            "tries one number after the other": " ".join(f"The answer is: {n}." for n in (1, 2, 3, truth)),
        }
        for what, reply in cheats.items():
            score = float(reward(reply, reference))
            need(0 <= score < 0.5, f"a reply that {what} earns {score:g} instead of 0 to 0.5: {reply[:80]!r}")
    return f"the reference earns 1, and none of {len(cheats)} ways to cheat earns half of that."


@check
def dpo_start(first_loss: float, *, margin: float) -> str:
    """The loss of DPO at a margin of 0: -log sigmoid(0)."""
    truth = math.log1p(math.exp(-margin))
    mistakes = {
        0: "a margin of 0 is no loss of 0: the model does not prefer the chosen answer yet.",
        0.5: "that is the probability sigma(0); the loss is its negative logarithm.",
    }
    other = f"you say {first_loss:g}. Put the margin into the formula of section 7, with the natural logarithm."
    expect(first_loss, truth, other, mistakes, near=0.01)
    return f"log 2 = {truth:.4f}. A first loss far from it means that the reference is not the model you start from."
