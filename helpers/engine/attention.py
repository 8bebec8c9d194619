"""Attention over rows laid end to end, by torch's own variable-length kernel: no padding, no mask, no extra package.

Registered with transformers under the name "varlen". Each row attends to itself only; the bounds of the rows come with
the batch (``cu_seq_lens_q``, see helpers.batches). On ROCm the same call reaches AOTriton. It was not run there, which is
why :func:`helpers.device.varlen_probe` compares the kernel with plain attention before a run relies on it.
"""

from __future__ import annotations

from helpers.device import varlen

from transformers import AttentionInterface

NAME = "varlen"


def varlen_forward(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, max_length_q=None,
                   **_):  # fmt: skip
    """What transformers calls in each layer; ``query`` is (1, heads, tokens, features), all rows end to end.

    Only for training: a model that generates needs a mask and a cache, see :func:`helpers.engine.trainer.fast`.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return varlen(query, key, value, cu_seq_lens_q, max_length_q, scaling)[None], None


AttentionInterface.register(NAME, varlen_forward)
