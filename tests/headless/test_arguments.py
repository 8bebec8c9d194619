"""The command line of the headless runner: typed values or one sentence, never a traceback, never exit 0."""

import contextlib
import io
import os
import re
from unittest import mock

from helpers.headless import UsageError, find_notebooks, parameters_of
from helpers.headless.__main__ import EXIT, main
from helpers.headless.parameters import parse_parameters
from helpers.headless.runner import Run
from helpers.settings import ROOT, checked

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SECRET = "hf_" + "Ab1" * 8
KNOWN = sorted(parameters_of(find_notebooks("02")[0]))
NAMES = st.sampled_from(
    [*KNOWN, "lrr", "max_step", "hf_token", "API_KEY", "mäx", "profile", "runs_dir", "__class__", ""]
)
ODD = ["true", "None", "1e-4", "1_0", "0x10", "9" * 5000, "-0.0", "٣", "bundled", "../x", "'", "$(id)", "=", "a=b"]
VALUES = st.one_of(
    st.integers().map(str), st.floats().map(str), st.text(max_size=20), st.just(SECRET), st.sampled_from(ODD)
)
PAIRS = st.tuples(NAMES, st.sampled_from(["=", "=", "=", "", "==", " = "]), VALUES).map("".join)
PARAMETERS = st.one_of(st.lists(PAIRS, max_size=4).map(" ".join), st.text(max_size=60))


def is_answered(text: str) -> None:
    """Hand a string to the command line, with all that would start a notebook replaced."""
    reached: list[dict] = []

    def series(run: Run, notebooks, fresh) -> str:
        reached.append(run.parameters)
        return "failed"

    errors = io.StringIO()
    with (
        mock.patch("helpers.headless.runner.locked", lambda folder, error: contextlib.nullcontext()),
        mock.patch("helpers.headless.runner.of_run", lambda folder: []),
        mock.patch.object(Run, "series", series),
        contextlib.redirect_stderr(errors),
    ):
        code = main(["--profile=tiny", "--notebooks=02", f"--params={text}"])
    assert "hf_Ab1" not in errors.getvalue()
    if reached:
        assert code == 1 and not errors.getvalue()
        for name, value in reached[0].items():
            assert name in KNOWN and name not in ("profile", "runs_dir")
            assert checked(name, value) == value and SECRET not in str(value)
        assert len(reached[0]) == text.count("=") or "=" in "".join(map(str, reached[0].values()))
    else:
        assert code == 2 and re.fullmatch(r"error: \S.{10,400}\n", errors.getvalue()), errors.getvalue()


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(PARAMETERS)
def test_random_parameters_are_answered(text):
    is_answered(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr=5", "no notebook that would run has a parameter 'lrr'; known: "),
        ("max_step=5", "did you mean 'max_steps'?"),
        ("max_new_token=5", "did you mean 'max_new_tokens'?"),
        ("profile=small", "give it as PROFILE="),
        ("seed=1 seed=2", "seed is given twice"),
        ("seed", "'seed' is not of the form name=value"),
        ("seed=", "'seed=' is not of the form name=value"),
        ("data=my file.jsonl", "'file.jsonl' is not of the form name=value (no spaces"),
        ("max_steps=false", "max_steps must be of type int, not bool (False)"),
        ("max_steps=1e3", "max_steps must be of type int, not float (1000.0)"),
        ("max_steps=0", "max_steps must be between 1 and 1,000,000"),
        ("learning_rate=fast", "learning_rate must be of type float, not str ('fast')"),
        ("learning_rate=nan", "learning_rate must be between"),
        ("learning_rate=TRUE", "learning_rate must be of type float, not bool"),
        ("seed=99999999999", "seed must be between 0 and 4,294,967,295"),
        ({"seed": 1.5}, "seed must be of type int, not float"),
        ({"learning_rate": True}, "learning_rate must be of type float, not bool"),
    ],
)
def test_a_wrong_name_type_or_value_is_refused_before_anything_runs(text, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        parse_parameters(text, find_notebooks())


def test_right_parameters_get_their_types():
    values = parse_parameters("max_steps=5 learning_rate=1e-4 seed=1 max_new_tokens=9", find_notebooks())
    assert values == {"max_steps": 5, "learning_rate": 1e-4, "seed": 1, "max_new_tokens": 9}
    values = parse_parameters({"learning_rate": 1e-4, "seed": "1"}, find_notebooks())
    assert values == {"learning_rate": 1e-4, "seed": 1}


@pytest.mark.parametrize("text", [f"hf_token={SECRET}", "api_key=1", f"{SECRET}=1", f"data={SECRET}"])
def test_a_secret_as_a_parameter_is_refused(book, text):
    book.write("00_any", "1")
    with pytest.raises(UsageError, match="looks like a secret: parameters are saved|has a parameter") as error:
        book.run(parameters=text)
    assert SECRET not in str(error.value) and not book.out.exists(), "nothing was started"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "smal"], "there is no profile 'smal'; did you mean 'small'?"),
        (["--params=x=1"], "no notebook that would run has a parameter 'x'; known: "),
        (["--cell-timeout", "-1"], "seconds, more than 0"),
        (["--cell-timeout", "nan"], "seconds, more than 0"),
        (["--runs-dir", ""], "RUNS_DIR is empty"),
        (["--runs-dir", "README.md"], "README.md/small cannot be written (Not a directory): choose another RUNS_DIR"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments, words, capsys):
    assert main(arguments) == 2
    written = capsys.readouterr()
    assert words in written.err and written.err.startswith("error: ") and written.err.count("\n") == 1
    assert not written.out


def test_an_empty_or_odd_runs_dir_is_no_other_folder(book, monkeypatch):
    book.write("00_any", "1")
    monkeypatch.setattr("helpers.headless.runner.ROOT", book.folder.parent)
    for name in ("a folder", "$(touch planted)", "quo'te"):
        assert main(["--profile=tiny", f"--runs-dir={name}", "--params=seed=x"]) == 2
    assert not list(book.folder.parent.rglob("planted"))
    assert sorted(os.listdir(book.folder.parent)) == ["notebooks"]


def test_notebooks_are_found_by_number_and_name():
    every = find_notebooks()
    assert [p.stem[:2] for p in every] == sorted(p.stem[:2] for p in every) and len(every) >= 6
    chosen = find_notebooks("02 notebooks/00_setup_check.ipynb")
    assert [p.stem for p in chosen] == ["00_setup_check", "02_lora_train"]
    assert find_notebooks(" , ") == every
    with pytest.raises(UsageError, match="did you mean '02_lora_train'"):
        find_notebooks("lora_train")


@pytest.mark.parametrize("copy", ["00_any-Copy1", "00_any-Copy12", "00_any (1)", "00_any.bak", "Untitled", "0_any"])
def test_a_copy_of_a_notebook_does_not_join_the_series(book, copy):
    book.write("00_any", "1")
    book.write(copy, "2")
    assert [p.stem for p in find_notebooks()] == ["00_any"] == [p.stem for p in find_notebooks("00")]
    assert {p.stem for p in find_notebooks(f"00_any {book.folder / '00_any.ipynb'}")} == {"00_any"}


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("seed = 2 * 3", "line 1 of the parameters cell is not of the form name = value"),
        ("seed = 1\nfor", "line 2 of the parameters cell"),
        ("a.b = 1", "line 1 of the parameters cell"),
        ("print(1)", "line 1 of the parameters cell"),
    ],
)
def test_a_parameters_cell_with_more_than_literals_is_named(book, monkeypatch, cell, words):
    monkeypatch.setattr(book, "PARAMETERS", cell)
    with pytest.raises(UsageError, match=words):
        parameters_of(book.write("00_any", "1"))


@pytest.mark.parametrize(
    "text",
    [
        "<<<<<<< HEAD",
        "",
        "{}",
        "null",
        '{"cells": [1], "metadata": {}}',
        "[" * 100_000,
        '{"cells": {}, "metadata": {}}',
    ],
)
def test_a_damaged_notebook_is_named(book, text):
    book.write("00_any", "1").write_text(text)
    with pytest.raises(UsageError, match="00_any.ipynb is no readable notebook .*git checkout"):
        book.run()


def test_help_and_the_page_on_running_list_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    words, page = capsys.readouterr().out, (ROOT / "docs/running.md").read_text()
    assert all(f"\n  {code} " in words and f"| {code} |" in page for code in {*EXIT.values(), 2})


def test_no_notebook_hands_a_line_to_a_shell():
    """The failure of such a line would be no failure of its cell."""

    def shell_lines(source: str) -> list[str]:
        return re.findall(r"^\s*(?:!.*|%%?(?:sh|bash|system|sx)\b.*)|=\s*!.*", source, re.MULTILINE)

    assert shell_lines("!exit 3") and shell_lines("x = !ls") and shell_lines("%%bash\nls") and not shell_lines("a != b")
    for notebook in (ROOT / "notebooks").rglob("*.ipynb"):
        for cell in nbformat.read(notebook, 4).cells:
            assert cell.cell_type != "code" or not shell_lines(cell.source), notebook
