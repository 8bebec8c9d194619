"""Checks for the exercises of 09_speed: ceilings, and the effect of a lever. They measure no time."""

from helpers.exercises import check, expect, need
from helpers.memory import Shape


@check
def ceilings(full: float, checkpointed: float, *, speed: float, shape: Shape) -> str:
    """The most tokens per second of full fine-tuning, and of LoRA with checkpointing, at a speed in operations per second."""
    once = speed / (2 * shape.block_weights)  # tokens per second of one pass through the weights
    count = "Count 2N for each pass through the weights, and divide the speed by the sum."
    lora = "full: that is LoRA's, which computes no gradients of the weights."
    expect(full, once / 3, f"full: not {full:,.0f}. {count}", {once / 2: lora}, near=0.01)
    mistakes = {
        once / 2: "checkpointed: the forward pass runs a second time, to compute the activations again.",
        once / 4: "checkpointed: only the forward pass is repeated, and frozen weights need no gradients.",
    }
    expect(checkpointed, once / 3, f"checkpointed: not {checkpointed:,.0f}. {count}", mistakes, near=0.01)
    same = "repeating the forward pass costs LoRA as much as the gradients of its weights cost full fine-tuning."
    return f"{once / 3:,.0f} tokens/s, both: {same}"


@check
def best_levers(faster: str, closer: str, *, found: list[dict], ceiling: dict[str, float]) -> str:
    """The rung that made the ladder faster by the largest factor, and the one that came closer to its ceiling most."""
    names = [rung["name"] for rung in found[1:]]
    speeds = [rung["tokens_per_second"] for rung in found]
    shares = [100 * s / ceiling[rung["chosen"]["precision"]] for s, rung in zip(speeds, found, strict=True)]
    times = [after / before for before, after in zip(speeds, speeds[1:], strict=False)]
    points = [after - before for before, after in zip(shares, shares[1:], strict=False)]
    shown = []
    for what, answer, gains, form in (
        ("faster", faster, times, "{:.2f} times as fast"),
        ("closer", closer, points, "{:+.1f} points of the ceiling"),
    ):
        need(answer in names, f"{what}: give a rung that changed something: {', '.join(names)}.")
        own, best = gains[names.index(answer)], max(gains)
        shown.append(f"{answer!r}: {form.format(own)}")
        right = own >= best - 0.02 * abs(best)  # two that are as good as each other are both right
        need(right, f"{what}: {shown[-1]}. Compare each rung with the one below it, not with the first.")
    return f"{'; '.join(shown)}. A lever that also raises the ceiling may gain much and still end farther from it."
