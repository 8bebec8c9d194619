"""Two thousand mutated files of each kind that a run reads."""

from tests.headless.test_mutated_json import check_mutated, finished  # noqa: F401

import pytest


@pytest.mark.parametrize("name", ["status", "record", "notebook"])
def test_two_thousand_mutated_files_give_values_or_a_sentence(finished, name):  # noqa: F811
    check_mutated(finished, name, count=2000, seed=2)
