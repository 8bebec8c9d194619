"""The fast path gives the plain path's results: packed rows, the loss, the kernel's interface, the optimizer's masters."""

from helpers.batches import Collator, training_order
from helpers.data import fingerprint
from helpers.engine import attention
from helpers.engine.loss import HeadLoss, supervised_nll
from helpers.guards import GuardError, batch_is_supervised
from helpers.models import load_base
from helpers.optimizer import AdamW
from helpers.settings import IGNORED, settings_for
from helpers.sources import resolve
from helpers.training import TrainingError, train

import pytest
import torch
import torch.nn.functional as F


def flatten(order):
    return [row for batch in order for row in batch]


def collate(batch, collator):
    return collator([{"rows": [{"input_ids": r.input_ids, "labels": r.labels} for r in batch]}])


def test_order_depends_on_the_seed_and_not_on_the_method(data, tiny):
    orders = {m: fingerprint(flatten(training_order(data, settings_for("tiny", m)))) for m in ("full", "lora", "dora")}
    assert len(set(orders.values())) == 1
    assert fingerprint(flatten(training_order(data, tiny.change(seed=1)))) not in orders.values()
    order = training_order(data, tiny.change(max_steps=100))
    assert [len(batch) for batch in order] == [8] * 100  # two and a half passes
    assert {id(row) for row in flatten(order[:40])} == {id(row) for row in data.train}


def test_rows_of_one_batch_are_of_like_length(data, tiny):
    order = training_order(data, tiny)
    assert Collator(False, 0).tokens(order) < 1.05 * sum(len(r.input_ids) for r in flatten(order))


def test_packing_loses_no_row_and_cuts_none(data, tiny):
    order = training_order(data, tiny.change(batch_tokens=640, max_steps=200))
    sizes = [sum(len(r.input_ids) for r in batch) for batch in order]
    epoch = len(data.train)
    rows = flatten(order)
    assert max(sizes) <= 640 and sum(sizes) > 0.9 * 640 * len(sizes)
    assert {id(r) for r in rows[:epoch]} == {id(r) for r in data.train}  # each once before any twice


def test_a_row_longer_than_a_packed_batch_is_refused(tmp_path, data):
    with pytest.raises(TrainingError, match=r"more than batch_tokens = 8: rows are never cut"):
        train(settings_for("tiny", batch_tokens=8, runs_dir=str(tmp_path)), data)


@pytest.mark.parametrize("impl", ["eager", "sdpa", "varlen"])
def test_rows_end_to_end_have_the_loss_and_gradients_of_padded_rows(data, tiny, monkeypatch, impl):
    """varlen's kernel exists on GPUs only; here each row's attention is computed apart in its place."""

    def by_row(query, key, value, bounds, longest, scale=None):
        lengths = bounds.diff().tolist()
        rows = zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in row), is_causal=True, scale=scale)
                          .transpose(0, 1) for row in rows])  # fmt: skip

    monkeypatch.setattr(attention, "_call", by_row)
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


def test_padding_and_eos_of_a_batch_are_checked(data, tokenizer):
    rows = data.train[:4]
    for collator in (Collator(False, 3, 8), Collator(True, 3, 640, 160)):
        batch = collate(rows, collator)
        assert "4 </s> labels in a batch of 4 rows" in batch_is_supervised(batch, rows, tokenizer).detail
        masked = dict(batch, labels=batch["labels"].masked_fill(batch["labels"] == tokenizer.eos_token_id, IGNORED))
        with pytest.raises(GuardError, match="never learn to stop"):
            batch_is_supervised(masked, rows, tokenizer)
        padded = dict(batch, labels=torch.where(batch["input_ids"] == 3, batch["input_ids"], batch["labels"]))
        with pytest.raises(GuardError, match="padding or a question takes part"):
            batch_is_supervised(padded, rows, tokenizer)


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


def test_masters_gather_steps_that_bf16_would_round_away():
    """Two hundred steps of 1e-5 on weights of 1: plain AdamW in bf16 moves nothing, with masters it arrives."""
    still, moved = (torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16)) for _ in range(2))
    plain, ours = torch.optim.AdamW([still], lr=1e-5, weight_decay=0), AdamW([moved], lr=1e-5, weight_decay=0)
    for _ in range(600):
        still.grad, moved.grad = torch.ones_like(still), torch.ones_like(moved)
        plain.step(), ours.step()
    assert torch.equal(still, torch.ones_like(still))
    assert torch.allclose(ours.state[moved]["master"], torch.tensor(1 - 600e-5), atol=1e-5)
    assert torch.equal(moved.detach(), ours.state[moved]["master"].to(torch.bfloat16)) and moved.max() < 1


def test_in_fp32_the_optimizer_is_torchs_and_its_state_is_saved_whole():
    torch.manual_seed(0)
    start, gradients = torch.randn(300), [torch.randn(300) for _ in range(4)]
    a, b = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours, theirs = AdamW([a], lr=1e-2, weight_decay=0.1), torch.optim.AdamW([b], lr=1e-2, weight_decay=0.1)
    for g in gradients:
        a.grad, b.grad = g.clone(), g.clone()
        ours.step(), theirs.step()
    assert torch.allclose(a, b, atol=1e-6)
    half = torch.nn.Parameter(start.to(torch.bfloat16))
    first = AdamW([half], lr=1e-4)
    half.grad = gradients[0].to(torch.bfloat16)
    first.step()
    again = AdamW([torch.nn.Parameter(half.detach().clone())], lr=1e-4)
    again.load_state_dict(first.state_dict())
    kept = again.state[again.param_groups[0]["params"][0]]
    assert kept["master"].dtype == torch.float32 and torch.equal(kept["master"], first.state[half]["master"])


def test_the_kernel_is_for_gpus_and_says_so():
    assert attention.probe("cpu") == "torch has this kernel for GPUs only"


def test_a_packed_run_trains_and_says_what_was_padding(tmp_path, data):
    settings = settings_for("tiny", batch_tokens=640, attention="sdpa", max_steps=4, runs_dir=str(tmp_path))
    record = train(settings, data).record
    assert record.training["padded_tokens"] == 4 * 640 and 0 < record.training["tokens"] <= 4 * 640
    assert record.steps[-1]["loss"] < record.steps[0]["loss"]


def test_sdpa_keeps_away_from_cudnn_which_plans_every_new_shape():
    assert not torch.backends.cuda.cudnn_sdp_enabled()
