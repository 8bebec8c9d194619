"""The fast loss has the value and the gradients of cross-entropy on the model's own logits."""

from helpers.batches import Collator
from helpers.engine.loss import HeadLoss, supervised_nll
from helpers.models import load_base
from helpers.settings import IGNORED, settings_for
from helpers.sources import resolve
from tests.shared import collate

import pytest
import torch
import torch.nn.functional as F


def test_the_loss_equals_the_models_own_in_value_and_gradient(data):
    ours, theirs = (load_base(resolve(settings_for("tiny", "full")), "fp32") for _ in range(2))
    batch = collate(data.train[:6], Collator(False, 0))
    nll, tokens = supervised_nll(ours, **batch)
    (nll / tokens).backward()
    loss = theirs(**batch).loss
    loss.backward()
    assert (nll / tokens).item() == pytest.approx(loss.item(), rel=1e-6)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6), name


def test_the_head_loss_in_chunks_equals_cross_entropy(monkeypatch):
    monkeypatch.setattr("helpers.engine.loss.LOGITS_CHUNK", 1)  # the smallest chunks there are
    hidden, weight = torch.randn(100, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(0, 50, (100,))
    targets[::7] = IGNORED
    mine = torch.autograd.grad(HeadLoss.apply(hidden, weight, targets), (hidden, weight))
    theirs = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets, reduction="sum"), (hidden, weight))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(mine, theirs, strict=True))
