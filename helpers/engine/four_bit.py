"""QLoRA's frozen layers with one kernel that unpacks a weight, where bitsandbytes launches three, with Python between them.

A GPU waits for those launches. They undo the double quantisation, which stores the scale of each block of 64 weights in 8 bits:
here that is done once, before the training, for half a bit more a weight. The numbers are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from helpers.models import decoder_blocks

import torch
from torch import nn


def _unpacked(packed, scales, kind: tuple[int, str], shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.ops.bitsandbytes.dequantize_4bit.default(packed, scales, *kind, shape, dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, packed, scales, kind, shape):
        ctx.save_for_backward(packed, scales)
        ctx.kind, ctx.shape = kind, shape
        return x @ _unpacked(packed, scales, kind, shape, x.dtype).t()

    @staticmethod
    def backward(ctx, grad):
        numbers = ctx.shape[0] * ctx.shape[1]
        # in another shape than before: a compiler that sees the same call twice keeps the first result, 13 GB of a 7B
        weight = _unpacked(*ctx.saved_tensors, ctx.kind, [numbers], grad.dtype).view(ctx.shape)
        return grad @ weight, None, None, None, None


class FourBitLinear(nn.Module):
    """A frozen linear layer of bitsandbytes whose scales are unpacked. Input (..., in), output (..., out)."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        from bitsandbytes.functional import dequantize_blockwise

        state = linear.weight.quant_state
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        self.register_buffer("packed", linear.weight.detach().view(-1, 1), persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.kind, self.shape, self.bias = (state.blocksize, state.quant_type), list(state.shape), linear.bias

    def forward(self, x):
        out = _Product.apply(x.reshape(-1, x.shape[-1]), self.packed, self.scales, self.kind, self.shape)
        out = out.reshape(*x.shape[:-1], self.shape[0])
        return out if self.bias is None else out + self.bias


@contextlib.contextmanager
def unpacked_at_once(model: nn.Module) -> Iterator[None]:
    """Every 4-bit layer of the decoder blocks as a :class:`FourBitLinear` while the block runs, bitsandbytes' own afterwards."""
    from bitsandbytes.nn import Linear4bit

    parents = [module for block in decoder_blocks(model) for module in block.modules()]
    layers = [(p, name, m) for p in parents for name, m in p.named_children() if isinstance(m, Linear4bit)]
    for parent, name, layer in layers:
        setattr(parent, name, FourBitLinear(layer))
    try:
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)
