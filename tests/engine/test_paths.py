"""Which path trains: in bf16, fp32 decides between rounding and a path that computes something else."""

from helpers.device import plan
from helpers.engine import loss, paths
from helpers.engine.preflight import TrainingError
from helpers.engine.trainer import collator
from helpers.models import load_base, load_tokenizer, to_train
from helpers.settings import settings_for
from helpers.sources import resolve

import pytest
import torch


@pytest.fixture
def decided(data, monkeypatch):
    """A function that decides the path of a tiny model on its shortest row; fp32 was asked as often as ``asked`` says."""
    real = paths._exact

    def decide(method: str, precision: str = "bf16"):
        settings = settings_for("tiny", method, precision=precision)
        base, rows = resolve(settings), sorted(data.train, key=lambda row: len(row.input_ids))[:1]
        planned = plan(settings, base.shape, len(rows[0].input_ids))
        model = to_train(load_base(base, precision), settings, precision)
        before, decide.asked = {name: w.clone() for name, w in model.state_dict().items()}, 0

        def counted(*arguments):
            decide.asked += 1
            return real(*arguments)

        monkeypatch.setattr(paths, "_exact", counted)
        batches = collator(settings, planned, load_tokenizer(base), [rows])
        found = paths.compared(model, planned, rows, batches, "tiny")[0]["loss"]
        after = model.state_dict()
        assert all(after[name].dtype == w.dtype and torch.equal(after[name], w) for name, w in before.items())
        return found

    return decide


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_difference_that_is_rounding_keeps_the_fast_path(decided, monkeypatch, method):
    monkeypatch.setitem(paths.TOLERANCE, "bf16", (2e-2, 1e-9))  # so that rounding alone is more
    assert decided(method)["value"] == "fast" and decided.asked == 1


@pytest.mark.parametrize("factor", [0.9, 1.1, 3.0])
def test_a_path_that_computes_something_else_is_refused(decided, monkeypatch, factor):
    real = loss.supervised_nll

    def wrong(*arguments, **inputs):
        nll, tokens = real(*arguments, **inputs)
        return factor * nll, tokens

    monkeypatch.setattr(loss, "supervised_nll", wrong)
    found = decided("full")
    assert found["value"] == "stock" and "against the model's own" in found["why"] and decided.asked == 1


def test_fp32_is_asked_only_where_bf16_differs(decided):
    for precision in ("bf16", "fp32"):
        assert decided("full", precision)["value"] == "fast" and decided.asked == 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), TrainingError("expected Float")])
def test_where_fp32_fails_the_models_own_path_trains(decided, monkeypatch, error):
    monkeypatch.setitem(paths.TOLERANCE, "bf16", (2e-2, 1e-9))
    real, calls = paths._own, []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) > 1:
            raise error
        return real(*arguments)

    monkeypatch.setattr(paths, "_own", full)
    assert decided("full")["value"] == "stock"
