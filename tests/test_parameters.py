"""Random parameter strings against the command line: typed values or one sentence, never a traceback, never exit 0."""

import contextlib
import io
import re
from unittest import mock

from helpers.headless.parameters import find_notebooks, parameters_of
from helpers.headless.runner import Run, main
from helpers.settings import checked

from hypothesis import given, settings
from hypothesis import strategies as st

SECRET = "hf_" + "Ab1" * 8
KNOWN = sorted(parameters_of(find_notebooks("02")[0]))
NAMES = st.sampled_from(
    [*KNOWN, "lrr", "max_step", "hf_token", "API_KEY", "mäx", "profile", "runs_dir", "__class__", ""]
)
VALUES = st.one_of(
    st.integers().map(str), st.floats().map(str), st.text(max_size=20), st.just(SECRET),
    st.sampled_from(["true", "None", "1e-4", "1_0", "0x10", "9" * 5000, "-0.0", "٣", "bundled", "../x", "'", "$(id)", "=", "a=b"]),
)  # fmt: skip
PAIRS = st.tuples(NAMES, st.sampled_from(["=", "=", "=", "", "==", " = "]), VALUES).map("".join)
PARAMETERS = st.one_of(st.lists(PAIRS, max_size=4).map(" ".join), st.text(max_size=60))


def is_answered(text: str) -> None:
    """Hand a string to the command line, with all that would start a notebook replaced."""
    reached: list[dict] = []

    def series(run: Run, notebooks, fresh) -> str:
        reached.append(run.parameters)
        return "failed"

    said = io.StringIO()
    with (
        mock.patch("helpers.headless.runner.locked", contextlib.nullcontext), mock.patch("helpers.headless.runner.end_marked"),
        mock.patch.object(Run, "series", series), contextlib.redirect_stderr(said),
    ):  # fmt: skip
        code = main(["--profile=tiny", "--notebooks=02", f"--params={text}"])
    assert "hf_Ab1" not in said.getvalue()
    if reached:
        assert code == 1 and not said.getvalue()
        for name, value in reached[0].items():
            assert name in KNOWN and name not in ("profile", "runs_dir")
            assert checked(name, value) == value and SECRET not in str(value)
        assert len(reached[0]) == text.count("=") or "=" in "".join(map(str, reached[0].values()))
    else:
        assert code == 2 and re.fullmatch(r"error: \S.{10,400}\n", said.getvalue()), said.getvalue()


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(PARAMETERS)
def test_random_parameters_are_answered(text):
    is_answered(text)
