"""Products with 4-bit weights inside compiled layers.

bitsandbytes dequantises a weight by calls that the compiler cannot look into: two kernels and their launches for each
product. The same arithmetic in torch's own operations becomes part of the compiled layer, bit for bit equal. With few
tokens in a step the launches are what a GPU waits for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def blocks(values: torch.Tensor, table: torch.Tensor, absmax: torch.Tensor, size: int) -> torch.Tensor:
    """The fp32 numbers that ``values`` stand for: indices into ``table``, scaled by block of ``size``."""
    block = torch.arange(values.numel(), device=values.device) // size
    return table[values.int()] * absmax[block]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dequantised):
        ctx.dequantised = dequantised
        return x @ dequantised(x.dtype).t()

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.dequantised(grad.dtype), None


class TorchLinear4bit(nn.Module):
    """A frozen 4-bit layer of bitsandbytes, dequantised by torch. Input (..., in), output (..., out)."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        state, self.bias = linear.weight.quant_state, linear.bias
        self.shape, self.dtype, self.size, self.inner_size = tuple(state.shape), state.dtype, state.blocksize, None
        pieces = {"packed": linear.weight.data, "table": state.code, "absmax": state.absmax}
        if state.nested:
            inner, self.inner_size = state.state2, state.state2.blocksize
            pieces |= {"inner_table": inner.code, "inner_absmax": inner.absmax, "mean": state.offset}
        for name, tensor in pieces.items():
            self.register_buffer(name, tensor, persistent=False)

    def weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight, of shape (out, in), rounded as bitsandbytes rounds it."""
        absmax, packed = self.absmax, self.packed.reshape(-1)
        if self.inner_size:
            absmax = blocks(absmax, self.inner_table, self.inner_absmax, self.inner_size) + self.mean
        indices = torch.stack((packed >> 4, packed & 15), 1).reshape(-1)  # the first number is in the upper half
        numbers = blocks(indices, self.table, absmax, self.size)
        return numbers.to(self.dtype).view(self.shape).to(dtype)

    def forward(self, x):
        out = _Product.apply(x, self.weight_in)
        return out if self.bias is None else out + self.bias.to(out.dtype)


@contextlib.contextmanager
def dequantised_by_torch(model: nn.Module) -> Iterator[None]:
    """Every 4-bit layer of bitsandbytes dequantised by torch while the block runs, and itself again afterwards."""
    places = [(p, name, m) for p in model.modules() for name, m in p.named_children()]
    places = [
        p for p in places if type(p[2]).__module__.startswith("bitsandbytes") and hasattr(p[2].weight, "quant_state")
    ]
    # a block that crosses rows is read in another way by bitsandbytes on a CPU
    places = [p for p in places if p[2].in_features % p[2].weight.quant_state.blocksize == 0]
    for parent, name, layer in places:
        setattr(parent, name, TorchLinear4bit(layer))
    try:
        yield
    finally:
        for parent, name, layer in places:
            setattr(parent, name, layer)
