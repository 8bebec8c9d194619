"""Attention over rows laid end to end, by torch's own variable-length kernel: no padding, no mask, no extra package.

Registered with transformers as "varlen"; the batch brings the bounds of its rows (``cu_seq_lens_q``). On ROCm the same call
reaches AOTriton and was not run, so :func:`helpers.device.varlen_probe` compares it with plain attention before its use.
"""

from __future__ import annotations

from helpers.device import varlen

from transformers import AttentionInterface

NAME = "varlen"
# what the bounds of the rows say already, and what changes no result
HARMLESS = {"position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
HARMLESS |= {"is_causal", "use_cache", "num_items_in_batch"}


def varlen_forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, **others):
    """What transformers calls in each layer; ``query`` is (1, heads, tokens, features), all rows end to end.

    Only for training: a model that generates needs a mask and a cache. What else a layer may ask for is refused.
    """
    asked = {name for name, value in others.items() if value is not None and value is not False} - HARMLESS
    asked |= {"attention_mask"} if attention_mask is not None else set()
    asked |= {"dropout"} if dropout else set()
    if asked or not getattr(module, "is_causal", True) or others.get("is_causal") is False:
        raise NotImplementedError(f"a layer asks its attention for {', '.join(sorted(asked)) or 'both directions'}")
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    bounds, longest = others["cu_seq_lens_q"], others["max_length_q"]
    return varlen(query, key, value, bounds, longest, scaling, sliding_window)[None], None


AttentionInterface.register(NAME, varlen_forward)
