"""Checks for the exercises of 00_setup_check: memory by part."""

from helpers.exercises import check, expect, need
from helpers.memory import GB, Shape, predict

import torch


@check
def bytes_kept(plain: float, momentum: float) -> str:
    """Bytes per parameter that are left after one step of SGD without and with momentum; measured on a layer."""
    for name, answer, rate in (("plain", plain, 0.0), ("momentum", momentum, 0.9)):
        layer = torch.nn.Linear(100, 100, bias=False)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=rate)
        layer(torch.randn(8, 100)).square().mean().backward()
        optimizer.step()
        states = [v for v in optimizer.state[layer.weight].values() if v is not None]
        truth = sum(t.nbytes for t in (layer.weight, layer.weight.grad, *states)) / layer.weight.numel()
        missing = f"{name}: 4 bytes are missing. The gradient is also there when the step is taken."
        adam = f"{name}: that is 4 bytes too many. Which of AdamW's numbers does SGD not keep?"
        other = f"{name}: not {answer:g}. Count weight, gradient, and what survives until the next step, per parameter."
        expect(answer, truth, other, {truth - 4: missing, truth + 4: adam})
    return "weight and gradient take 4 bytes each; momentum adds one running mean, where AdamW keeps two."


@check
def largest_batch(batch: int, *, shape: Shape, method: str, memory: float, **size) -> str:
    """The largest batch whose predicted peak stays within ``memory`` bytes."""
    peak, one_more = (predict(shape, method, batch=rows, **size).total for rows in (batch, batch + 1))
    need(peak <= memory, f"{batch} rows need {peak / GB:.1f} GB at the peak, and there are {memory / GB:.1f} GB.")
    need(one_more > memory, f"{batch} rows fit, and so does one more ({one_more / GB:.1f} of {memory / GB:.1f} GB).")
    size = f"{batch} rows take {peak / GB:.1f} GB, one more {one_more / GB:.1f} GB"
    return f"{size}. Where memory is short, raise `accumulation` instead of the batch: the result is the same."
