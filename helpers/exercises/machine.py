"""Checks for the exercises of 00_setup_check: memory by part."""

from __future__ import annotations

from helpers.exercises import check, need, number
from helpers.memory import GB, Shape, predict

import torch


@check
def bytes_kept(plain, momentum) -> str:
    """Bytes a parameter that are left after one step of SGD without and with momentum; measured on a layer."""

    def left(**options) -> float:
        layer = torch.nn.Linear(100, 100, bias=False)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, **options)
        layer(torch.randn(8, 100)).square().mean().backward()
        optimizer.step()
        states = [v for v in optimizer.state[layer.weight].values() if isinstance(v, torch.Tensor)]
        return sum(t.nbytes for t in (layer.weight, layer.weight.grad, *states)) / layer.weight.numel()

    for name, said, truth in (("plain", plain, left()), ("momentum", momentum, left(momentum=0.9))):
        said = number(said, name)
        need(said < 1000, f"{name}: the question asks for bytes for each single parameter; divide by their number.")
        need(said != truth - 4, f"{name}: 4 bytes are missing. The gradient is there as well when the step is taken.")
        need(
            said <= truth, f"{name}: {said:g} is too much. Which of AdamW's four numbers does this optimizer not keep?"
        )
        need(
            said == truth,
            f"{name}: {said:g} is too little. Weight, gradient, and what must survive until the next step?",
        )
    return "weight and gradient, 4 bytes each; momentum is one running mean more, where AdamW keeps two."


@check
def parts_that_grow(parts, *, shape: Shape) -> str:
    """The parts of LoRA's predicted memory that grow when rows become twice as long."""
    short, long = (predict(shape, "lora", batch=4, length=length).to_dict() for length in (512, 1024))
    grow = {name for name in short if long[name] > short[name]} - {"total"}
    said = {parts} if isinstance(parts, str) else set(parts)
    unknown = said - (short.keys() - {"total"})
    need(
        not unknown,
        f"no part is called {', '.join(map(str, unknown))}; they are {', '.join(short.keys() - {'total'})}.",
    )
    fixed = said - grow
    need(not fixed, f"{', '.join(sorted(fixed))}: counted by parameter, and longer rows add no parameter.")
    need(
        said == grow,
        "one is missing. What else does the model compute for each single position, up to the very last layer?",
    )
    return "these are counted by position of a row; the rest is counted by parameter, and rows add none."


@check
def largest_batch(batch, *, shape: Shape, method: str, memory: float, **size) -> str:
    """The largest batch whose predicted peak stays within ``memory`` bytes."""

    def peak(rows: int) -> float:
        return predict(shape, method, batch=rows, **size).total

    batch = number(batch, "batch")
    need(batch == int(batch) and batch >= 1, f"{batch:g} rows cannot be in a batch; give a whole number from 1.")
    need(
        peak(int(batch)) <= memory,
        f"{batch:g} rows need {peak(int(batch)) / GB:.1f} GB at the peak, and there are {memory / GB:.1f} GB.",
    )
    need(
        peak(int(batch) + 1) > memory,
        f"{batch:g} rows fit, and so does one more ({peak(int(batch) + 1) / GB:.1f} of {memory / GB:.1f} GB).",
    )
    return (
        f"{batch:g} rows take {peak(int(batch)) / GB:.1f} GB, one more {peak(int(batch) + 1) / GB:.1f} GB. Where memory is "
        "short, raise `accumulation` instead of the batch: the result is the same."
    )
