"""Attention over rows laid end to end, by torch's own variable-length kernel: no padding, no mask, no extra package.

Registered with transformers under the name "varlen". Each row attends to itself only; the bounds of the rows come
with the batch (``cu_seq_lens_q``, see helpers.batches). On ROCm the same call reaches AOTriton: not run there yet,
which is why :func:`probe` compares the kernel with plain attention before a run relies on it.

torch's SDPA is kept away from cuDNN, which plans each new shape before it computes: some 0.4 s for a batch that trains
and 0.04 s for a token that is generated, on one NVIDIA H200 (2026-11-22, "cudnn" in helpers/reference/speed-7b.json).
Ragged rows make a new shape in nearly every step, and an answer one with every token.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "varlen"


def _call(query, key, value, bounds, longest: int, scale: float | None = None):
    """torch's kernel on (tokens, heads, features), causal."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0))


def varlen_forward(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, max_length_q=None,
                   **_):  # fmt: skip
    """What transformers calls in each layer; ``query`` is (1, heads, tokens, features), all rows end to end.

    Only for training: a model that generates needs a mask and a cache, see :func:`helpers.engine.trainer.fast`.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return _call(query, key, value, cu_seq_lens_q, max_length_q, scaling)[None], None


@lru_cache
def probe(device: str) -> str | None:
    """Try the kernel on two short rows and compare with plain attention; None if right, else what went wrong."""
    if device == "cpu":
        return "torch has this kernel for GPUs only"
    torch_state = torch.random.get_rng_state()
    try:
        lengths, features = (5, 11), 64
        bounds = torch.tensor([0, 5, 16], dtype=torch.int32, device=device)
        q, k, v = (torch.randn(16, 2, features).to(device, torch.bfloat16).requires_grad_() for _ in range(3))
        out = _call(q, k, v, bounds, max(lengths))
        rows = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        plain = torch.cat([
            F.scaled_dot_product_attention(*(x.transpose(0, 1).float() for x in row), is_causal=True).transpose(0, 1)
            for row in rows
        ])  # fmt: skip
        gradient = torch.autograd.grad(out.float().square().sum(), q)[0].float()
        expected = torch.autograd.grad(plain.square().sum(), q)[0].float()
        errors = torch.stack([(out.float() - plain).abs().max(), (gradient - expected).abs().max()])
        error = errors.max().item()  # NaN if there is one in either, unlike Python's max
        return None if error < 0.1 else f"its result is off by {error:.2g}"
    except (ImportError, RuntimeError, NotImplementedError, TypeError, AssertionError) as problem:
        return f"{type(problem).__name__}: {str(problem).splitlines()[0][:100]}"
    finally:
        torch.random.set_rng_state(torch_state)


AttentionInterface.register(NAME, varlen_forward)
torch.backends.cuda.enable_cudnn_sdp(False)
