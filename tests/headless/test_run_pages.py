"""The headless runner when nothing is wrong but perhaps its arguments; tests/test_faults_runner.py has the rest."""

from helpers.headless.parameters import UsageError, find_notebooks, parameters_of
from helpers.headless.runner import EXIT, Run, main
from helpers.records import RunRecord
from helpers.settings import ROOT

import nbformat
import pytest


def test_notebooks_are_found_by_number_and_name():
    every = find_notebooks()
    assert [p.stem[:2] for p in every] == sorted(p.stem[:2] for p in every) and len(every) >= 6
    assert [p.stem for p in find_notebooks("02 notebooks/00_setup_check.ipynb")] == ["00_setup_check", "02_lora_train"]
    assert find_notebooks(" , ") == every
    with pytest.raises(UsageError, match="did you mean '02_lora_train'"):
        find_notebooks("lora_train")


def test_parameters_reach_the_notebook_and_every_page_shows_it(book):
    book.write("00_first", "print(profile, seed, max_steps, learning_rate)")
    book.write("01_second", "print('<script>alert(1)</script>', runs_dir)")
    assert book.run(parameters={"seed": 7, "learning_rate": 1e-4}) == "ok"
    executed = nbformat.read(book.out / "notebooks/00_first.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "tiny 7 None 0.0001\n"
    assert "papermill" not in executed.metadata, "it would hold paths of this machine"
    assert book.lines[:2] == ["00_first  running", "  00_first  cell 1 of 3  "]
    assert "  00_first  cell 3 of 3  A step" in book.lines
    assert book.entry("00_first")["parameters"]["seed"] == 7 and book.entry("00_first")["peak"] > 1e7
    assert "passed" in book.page() and 'href="notebooks/01_second.html"' in book.page()

    book.run(parameters="seed=7 learning_rate=1e-4")
    assert sum("passed before" in line for line in book.lines) == 2
    assert book.run(parameters="seed=7 learning_rate=1e-4", notebooks="01", fresh=True) == "ok"
    assert "01_second  running" in book.lines and book.entry("00_first")["status"] == "ok"


def test_a_promised_record_must_exist_and_be_new(book):
    book.write("00_promise", "print('nothing saved')", records=["lora"])
    RunRecord("lora", "tiny", 0, finished="2020-01-01T00:00:00Z").save(book.out / "lora-s0")
    assert book.run() == "failed"
    assert book.entry("00_promise")["why"] == f"every cell ran, but it wrote no {book.out / 'lora-s0/record.json'}"


def test_progress_on_a_terminal_is_one_line_that_fits(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    run = Run("tiny", {}, "runs", 1, 1, None, None)
    run._draw("  02_lora_train  cell 12 of 21  a long heading")
    assert capsys.readouterr().out == "\r\033[K  02_lora_train  cell 12 of 2"
    run._draw("")
    assert capsys.readouterr().out == "\r\033[K", "and is gone before the next lasting line"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "smal"], "there is no profile 'smal'; did you mean 'small'?"),
        (["--params=x=1", "--notebooks=00"], "has a parameter 'x'; those notebooks have no parameters"),
        (["--params=x=1"], "no notebook that would run has a parameter 'x'; known: "),
        (["--cell-timeout", "-1"], "seconds, more than 0"),
        (["--runs-dir", "README.md"], "README.md/small cannot be written (Not a directory): choose another RUNS_DIR"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments, words, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out


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


def test_a_damaged_notebook_is_named(book):
    book.write("00_any", "1").write_text("<<<<<<< HEAD")
    with pytest.raises(UsageError, match="00_any.ipynb is no readable notebook"):
        book.run()


def test_help_and_the_page_on_running_list_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed, page = capsys.readouterr().out, (ROOT / "docs/running.md").read_text()
    for code in {*EXIT.values(), 2}:
        assert f"\n  {code} " in listed and f"| {code} |" in page


def test_a_formula_that_cannot_be_read_is_shown_as_written(book):
    from helpers.headless import markdown_to_html

    assert "<code>a&lt;b^</code>" in markdown_to_html("so $a<b^$ it is")


def test_a_broken_environment_is_said(book, monkeypatch, tmp_path):
    book.write("00_any", "1")
    (tmp_path / "papermill.py").write_text("raise ImportError('half of papermill is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert book.run() == "killed"
    assert book.entry("00_any")["why"].endswith("ended early: ImportError: half of papermill is missing")
    assert not (book.out / "notebooks").exists()
