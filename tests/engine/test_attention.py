"""Rows laid end to end are trained like padded ones, whatever computes the attention."""

from helpers.batches import Collator
from helpers.device import varlen_probe
from helpers.engine import attention
from helpers.engine.loss import supervised_nll
from helpers.models import load_base
from helpers.settings import settings_for
from helpers.sources import resolve
from tests.shared import collate

import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize("impl", ["eager", "sdpa", "varlen"])
def test_rows_end_to_end_have_the_loss_and_gradients_of_padded_rows(data, tiny, monkeypatch, impl):
    """varlen's kernel exists on GPUs only; here each row's attention is computed apart in its place."""

    def by_row(query, key, value, bounds, longest, scale=None, window=None):
        assert window is None
        lengths = bounds.diff().tolist()
        rows = zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in row), is_causal=True, scale=scale)
                          .transpose(0, 1) for row in rows])  # fmt: skip

    monkeypatch.setattr(attention, "varlen", by_row)
    rows = data.train[:6]
    longest = max(len(r.input_ids) for r in rows)
    results = []
    for flat in (False, True):
        model = load_base(resolve(settings_for("tiny", "full")), "fp32", impl if flat and impl != "varlen" else "eager")
        if flat and impl == "varlen":
            model.set_attn_implementation("varlen")
        batch = collate(rows, Collator(flat, 0, 640 if flat else 1, longest))
        nll, tokens = supervised_nll(model, **batch)
        nll.backward()
        results.append((nll.item(), tokens, [p.grad for p in model.parameters()]))
    (a, n, grads), (b, m, others) = results
    assert n == m and b == pytest.approx(a, rel=1e-6)
    assert all(torch.allclose(x, y, atol=2e-4, rtol=1e-4) for x, y in zip(grads, others, strict=True))


def test_without_a_gpu_the_kernel_is_not_tried():
    assert varlen_probe("cpu") == "torch has this kernel for GPUs only"
