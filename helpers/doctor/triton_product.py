"""A product of two square matrices in Triton, the language of the fused kernels that train on a GPU."""

import torch
import triton
import triton.language as tl


@triton.jit
def _product(a, b, out, n: tl.constexpr):
    row = tl.arange(0, n)
    places = row[:, None] * n + row[None, :]
    tl.store(out + places, tl.dot(tl.load(a + places), tl.load(b + places)))


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product of two contiguous matrices of shape (n, n) in fp32; n is a power of 2."""
    out = torch.empty(a.shape, dtype=torch.float32, device=a.device)
    _product[(1,)](a, b, out, a.shape[0])
    return out
