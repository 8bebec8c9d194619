"""The matrix products of the decoder layers in fp8, each matrix scaled by row. Run on NVIDIA H100 and H200, not on ROCm.

Frozen weights are quantised once, in two copies that take the memory of one in bf16, which waits in main memory meanwhile;
weights that are trained at each use. An adapter's own products, and the gradients of trained weights, stay in bf16.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from helpers.models import decoder_blocks

import torch
from torch import nn


def fp8_dtype() -> torch.dtype:
    """The 8-bit format of this device: e4m3, on MI300X (gfx942) in its own variant."""
    if torch.version.hip and "gfx94" in torch.cuda.get_device_properties(0).gcnArchName:
        return torch.float8_e4m3fnuz
    return torch.float8_e4m3fn


def quantise(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix of shape (rows, columns) in fp8, and the fp32 scale of each row, of shape (rows, 1)."""
    scale = x.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / torch.finfo(dtype).max
    return (x.float() / scale).to(dtype), scale


def product(a, scale_a, b, scale_b) -> torch.Tensor:
    """``a @ b.T`` in bf16, of (m, k) and (n, k) in fp8 with their scales by row; off the GPU the same arithmetic, emulated."""
    if a.is_cuda:
        return torch._scaled_mm(a, b.t(), scale_a, scale_b.t(), out_dtype=torch.bfloat16, use_fast_accum=True)
    return ((a.float() * scale_a) @ (b.float() * scale_b).t()).to(torch.bfloat16)


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, scale, transposed, transposed_scale):
        ctx.save_for_backward(transposed, transposed_scale)
        return product(*quantise(x, weight.dtype), weight, scale)

    @staticmethod
    def backward(ctx, grad):
        transposed, scale = ctx.saved_tensors
        return product(*quantise(grad.contiguous(), transposed.dtype), transposed, scale), None, None, None, None


class Fp8Linear(nn.Module):
    """A frozen linear layer whose products run in fp8. Input (..., in), output (..., out), both bf16."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        dtype, weight = fp8_dtype(), linear.weight.detach()
        pieces = (*quantise(weight, dtype), *quantise(weight.t().contiguous(), dtype))
        for name, tensor in zip(("weight", "scale", "transposed", "transposed_scale"), pieces, strict=True):
            self.register_buffer(name, tensor, persistent=False)
        self.bias, self.in_features, self.out_features = linear.bias, linear.in_features, linear.out_features

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        out = _Frozen.apply(rows, self.weight, self.scale, self.transposed, self.transposed_scale)
        out = out.reshape(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, dtype):
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        return product(*quantise(x, dtype), *quantise(weight, dtype))

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        by_input = product(*quantise(grad, ctx.dtype), *quantise(weight.t().contiguous(), ctx.dtype))
        return by_input, grad.t() @ x, None


class Fp8TrainedLinear(nn.Linear):
    """A linear layer whose weight is trained. Input (..., in), output (..., out), weight and gradients all bf16."""

    def forward(self, x):
        out = _Trained.apply(x.reshape(-1, x.shape[-1]), self.weight, self.fp8_dtype)
        out = out.reshape(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def probe(device: str) -> str | None:
    """Whether this device has the product: None if it is right, otherwise what is wrong."""
    if device == "cpu":
        return "a CPU has no fp8 products"
    try:
        a, b = (torch.randn(64, 128, device=device, dtype=torch.bfloat16) for _ in range(2))
        got, exact = product(*quantise(a, fp8_dtype()), *quantise(b, fp8_dtype())), a.float() @ b.float().t()
        error = ((got.float() - exact).norm() / exact.norm()).item()
        return None if error < 0.1 else f"its result is off by {error:.0%}"
    except (RuntimeError, NotImplementedError, AttributeError) as problem:
        return f"{type(problem).__name__}: {str(problem).splitlines()[0][:100]}"


@contextlib.contextmanager
def products_in_fp8(model: nn.Module) -> Iterator[None]:
    """Every linear layer of the decoder blocks in fp8 while the block runs; frozen weights are bit for bit as before afterwards.

    The product takes multiples of 16 features; other layers, among them adapters of small rank, keep bf16.
    """
    parents = [module for block in decoder_blocks(model) for module in block.modules()]
    layers = [(p, name, m) for p in parents for name, m in p.named_children() if type(m) is nn.Linear]
    layers = [place for place in layers if not (place[2].in_features % 16 or place[2].out_features % 16)]
    adapted = not all(weight.requires_grad for _, _, layer in layers for weight in layer.parameters())
    devices = {layer: layer.weight.device for _, _, layer in layers}
    for parent, name, layer in layers:
        if not adapted:
            layer.fp8_dtype, layer.__class__ = fp8_dtype(), Fp8TrainedLinear
        elif not layer.weight.requires_grad:
            setattr(parent, name, Fp8Linear(layer))
            layer.weight.data = layer.weight.data.cpu()
    try:
        yield
    finally:
        for parent, name, layer in layers:
            layer.__class__ = nn.Linear
            setattr(parent, name, layer)
            layer.weight.data = layer.weight.data.to(devices[layer])
