"""Every family trains 40 steps as a plain transformers loop does, packed rows included where its attention allows them.

Slow, so `make campaign` and not `make test`: the tests in tests/test_families.py take three steps of each family.
"""

from helpers.data import prepare
from helpers.engine.preflight import TrainingError
from helpers.models import load_tokenizer
from helpers.settings import settings_for
from helpers.sources import resolve
from helpers.training import train
from tests.families import FAMILIES, build, plain_losses
from tests.shared import losses

import pytest

TINY = settings_for("tiny", train_rows=60)
APART = ("falcon-alibi", "gpt-oss-sinks")  # transformers lets their packed rows see each other


@pytest.fixture(scope="module")
def data():
    return prepare(TINY, load_tokenizer(resolve(TINY)))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_forty_steps_equal_a_plain_loop(family, method, tmp_path, data):
    folder = build(resolve(TINY).folder, tmp_path / "model", *FAMILIES[family])
    changes = {"model": str(folder), "runs_dir": str(tmp_path), "precision": "fp32", "max_steps": 40}
    settings = settings_for("tiny", method, learning_rate=1e-3, **changes)
    assert losses(train(settings, data)) == pytest.approx(plain_losses(settings, data), rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_train_as_alone_or_are_refused_in_one_sentence(family, tmp_path, data):
    folder = build(resolve(TINY).folder, tmp_path / "model", *FAMILIES[family])
    changes = {"model": str(folder), "runs_dir": str(tmp_path), "precision": "fp32", "max_steps": 4}
    settings = settings_for("tiny", "lora", batch_tokens=1024, **changes)
    if family in APART:
        with pytest.raises(TrainingError, match="cannot be trained with batch_tokens: .* set batch_size instead$"):
            train(settings, data)
    else:
        assert losses(train(settings, data)) == pytest.approx(plain_losses(settings, data), rel=1e-4)
