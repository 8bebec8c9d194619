"""The pages that a run leaves: what it found, what each notebook did, and nothing that a model wrote as HTML."""

import html

from helpers.headless.pages import markdown_to_html, output_to_html, tidy, write_index, write_pages
from helpers.headless.runner import Run
from helpers.plotting import token_strip

import nbformat
import pytest

HOSTILE = "<script>alert(1)</script>"


def output(**data: str):
    return nbformat.v4.new_output("display_data", {name.replace("_", "/"): value for name, value in data.items()})


def page_of(folder, *cells) -> str:
    """The page of a notebook with these cells."""
    write_pages(tidy(nbformat.v4.new_notebook(cells=[*cells])), folder / "any.ipynb")
    return (folder / "any.html").read_text()


def code(*outputs, **metadata):
    return nbformat.v4.new_code_cell("1", outputs=[*outputs], metadata=metadata)


def test_parameters_reach_the_notebook_and_every_page_shows_it(book):
    book.write("00_first", "print(profile, seed, max_steps, learning_rate)")
    book.write("01_second", "print('<script>alert(1)</script>', runs_dir)")
    assert book.run(parameters={"seed": 7, "learning_rate": 1e-4}) == "ok"
    executed = nbformat.read(book.out / "notebooks/00_first.ipynb", 4)
    assert executed.cells[-1].outputs[0].text == "tiny 7 None 0.0001\n"
    assert executed.cells[1].metadata.tags == ["injected-parameters"] and "seed = 7" in executed.cells[1].source
    assert str(book.folder) not in (book.out / "notebooks/00_first.ipynb").read_text(), "no paths of this machine"
    assert book.lines[:2] == ["00_first  running", "  00_first  cell 1 of 3  "]
    assert "  00_first  cell 3 of 3  A step" in book.lines
    assert book.entry("00_first")["parameters"]["seed"] == 7 and book.entry("00_first")["peak"] > 1e7
    assert "passed" in book.page() and 'href="notebooks/01_second.html"' in book.page()

    book.run(parameters="seed=7 learning_rate=1e-4")
    assert sum("passed before" in line for line in book.lines) == 2
    assert book.run(parameters="seed=7 learning_rate=1e-4", notebooks="01", fresh=True) == "ok"
    assert "01_second  running" in book.lines and book.entry("00_first")["status"] == "ok"


def test_progress_on_a_terminal_is_one_line_that_fits(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    run = Run("tiny", {}, "runs", 1, 1, None, None)
    run.say("  02_lora_train  cell 12 of 21  a long heading", passing=True)
    assert capsys.readouterr().out == "\r\033[K  02_lora_train  cell 12 of 2"
    run.say("02_lora_train  passed")
    assert capsys.readouterr().out == "\r\033[K02_lora_train  passed\n", "it takes the place of the passing line"


@pytest.mark.parametrize(
    "outputs",
    [
        [output(text_plain=HOSTILE)],
        [nbformat.v4.new_output("stream", text=HOSTILE)],
        [nbformat.v4.new_output("error", ename=HOSTILE, evalue=HOSTILE, traceback=[HOSTILE])],
        [output(text_markdown=f"an answer: {HOSTILE}")],
        [output(text_markdown=f"{HOSTILE}\n\n<img src=x onerror=alert(1)>\n\n<!-- -->{HOSTILE}")],
        [output(text_markdown="[press](javascript:alert(1)) ![x](javascript:alert(1)) <javascript:alert(1)>")],
        [output(text_markdown=f"```html\n{HOSTILE}\n```\n\n| a |\n|---|\n| {HOSTILE} |\n\n$a{HOSTILE}$")],
        [output(text_markdown="[" * 30_000 + HOSTILE)],
    ],
    ids=range(8),
)
def test_what_a_model_may_have_written_is_shown_as_text(tmp_path, outputs):
    page = page_of(tmp_path, code(*outputs))
    assert "alert(1)" in page or "harmful" in page
    for raw in (HOSTILE, "<img src=x", 'href="javascript:', 'src="javascript:'):
        assert raw not in page and raw not in output_to_html(outputs[0])


def test_the_authors_own_markdown_may_hold_html(tmp_path):
    assert "<b>bold</b>" in page_of(tmp_path, nbformat.v4.new_markdown_cell("<b>bold</b>"))


def test_a_strip_of_tokens_is_escaped():
    assert HOSTILE not in token_strip([HOSTILE], [True]).data


def test_the_first_page_escapes_what_it_shows(tmp_path):
    entry = {"status": "failed", "cell": 1, "cells": 1, "heading": HOSTILE, "why": HOSTILE, "source": HOSTILE}
    page = write_index(tmp_path, HOSTILE, {"00_any": entry | {"last_lines": HOSTILE, "seconds": 1}}).read_text()
    assert HOSTILE not in page and page.count(html.escape(HOSTILE)) == 5


def test_the_first_page_shows_what_the_run_found(tmp_path):
    """The outputs of the cells tagged ``story``, under their headings; not of a notebook that did not pass."""
    story = {"tags": ["story"]}
    figure, table = (
        output(text_html='<img alt="losses" src="data:image/png;base64,AAAA">'),
        output(text_html="<table><td>0.05"),
    )
    cells = [
        nbformat.v4.new_markdown_cell("# Compare\n\n## LoRA needs a third of the memory"),
        code(figure, table, **story),
    ]
    cells += [
        nbformat.v4.new_markdown_cell("## Replies"),
        code(output(text_markdown=f"*Paris* {HOSTILE}"), **story),
        code(output(text_plain="not this")),
    ]
    for name in ("04_compare", "05_inference"):
        write_pages(tidy(nbformat.v4.new_notebook(cells=cells)), tmp_path / f"notebooks/{name}.ipynb")
    entry = {"status": "ok", "seconds": 2, "page": True}
    page = write_index(
        tmp_path, "tiny", {"04_compare": entry, "05_inference": entry | {"status": "failed"}}
    ).read_text()
    assert page.count("<h3>LoRA needs a third of the memory</h3>") == 2, "once for each output of the one that passed"
    assert (
        page.count('alt="losses"') == 1 and "<em>Paris</em>" in page and "not this" not in page and HOSTILE not in page
    )
    assert page.index("losses") < page.index("<h2>Notebooks</h2>")


def test_the_first_page_links_to_no_page_of_another_run(tmp_path):
    write_pages(nbformat.v4.new_notebook(), tmp_path / "notebooks/00_any.ipynb")
    for entry, linked in (
        ({"status": "ok", "page": True}, True),
        ({"status": "killed", "page": False}, False),
        ({"status": "running"}, False),
    ):
        assert (
            'href="notebooks/00_any.html"' in write_index(tmp_path, "tiny", {"00_any": entry}).read_text()
        ) == linked


def test_a_formula_that_cannot_be_read_is_shown_as_written(tmp_path):
    assert "<code>a&lt;b^</code>" in page_of(tmp_path, nbformat.v4.new_markdown_cell("so $a<b^$ it is"))
    assert "<math" in markdown_to_html("so $a^b$ it is")
