"""The order of a run and its batches: fixed by the seed, no row cut or lost."""

from helpers.batches import Collator, training_order
from helpers.data import fingerprint
from helpers.engine.preflight import TrainingError
from helpers.settings import settings_for
from helpers.training import train

import pytest


def flatten(order):
    return [row for batch in order for row in batch]


def test_order_depends_on_the_seed_and_not_on_the_method(data, tiny):
    orders = {m: fingerprint(flatten(training_order(data, settings_for("tiny", m)))) for m in ("full", "lora", "dora")}
    assert len(set(orders.values())) == 1
    assert fingerprint(flatten(training_order(data, tiny.change(seed=1)))) not in orders.values()
    order = training_order(data, tiny.change(max_steps=100))
    assert [len(batch) for batch in order] == [8] * 100  # two and a half passes
    assert {id(row) for row in flatten(order[:40])} == {id(row) for row in data.train}


def test_rows_of_one_batch_are_of_like_length(data, tiny):
    order = training_order(data, tiny)
    assert Collator(False, 0).tokens(order) < 1.1 * sum(len(r.input_ids) for r in flatten(order))


def test_packing_loses_no_row_and_cuts_none(data, tiny):
    order = training_order(data, tiny.change(batch_tokens=640, max_steps=200))
    sizes = [sum(len(r.input_ids) for r in batch) for batch in order]
    epoch = len(data.train)
    rows = flatten(order)
    assert max(sizes) <= 640 and sum(sizes) > 0.9 * 640 * len(sizes)
    assert {id(r) for r in rows[:epoch]} == {id(r) for r in data.train}  # each once before any twice


def test_packed_rows_are_counted_as_they_are_trained(tmp_path, tiny, data):
    """Rows are packed whole: each is there once a pass, none is cut, and what is worked through is recorded."""
    settings = tiny.change(batch_tokens=512, runs_dir=str(tmp_path), max_steps=len(data.train))
    seen, batches = [], iter(training_order(data, settings))
    while len(seen) < len(data.train):
        batch = next(batches)
        assert sum(len(row.input_ids) for row in batch) <= 512
        seen += batch
    assert {id(row) for row in seen} == {id(row) for row in data.train} and len(seen) == len(data.train)
    record = train(settings.change(max_steps=4), data).record
    packed = [row for batch in training_order(data, settings)[:4] for row in batch]
    assert record.training["tokens"] == sum(len(row.input_ids) for row in packed)
    assert record.training["padded_tokens"] == 4 * 512
    with pytest.raises(TrainingError, match="more than batch_tokens = 32: rows are never cut, so raise batch_tokens"):
        train(settings.change(batch_tokens=32), data)
