"""Output without end: it is cut where it arises, at a cost that grows no faster than the output, and the cut is shown."""

import json
import threading
import time

from helpers.headless.display import visible
from helpers.headless.extension import CELL, CUT, NOTEBOOK, Limit, shorten_error, size
from helpers.headless.pages import as_on_a_terminal, failing_cell, tidy, write_pages

import nbformat
import psutil
import pytest

MUCH = {  # a cell, and what is left of the first of its output
    "a line": ("print('x' * 10**9)", "x" * 1000),
    "a program": ("import subprocess\nsubprocess.run('head -c 100000000 /dev/zero | tr \"\\\\0\" y', shell=True, check=True)", "y" * 1000),
    "displays": ("from IPython.display import HTML, display\nfor i in range(40): display(HTML('z' * 5_000_000))", "z" * 1000),
}  # fmt: skip


@pytest.mark.parametrize("kind", MUCH)
def test_much_output_stays_small_and_is_cut_in_one_place(book, kind, monkeypatch):
    """The process that holds the notebook is measured; that of the runner holds no output at all."""
    cell, start = MUCH[kind]
    book.write("00_any", cell, "print('the next cell')")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")  # with it, ipykernel leaves out what programs print
    peak, done = [0], threading.Event()

    def measure() -> None:
        while not done.wait(0.05):
            for child in psutil.Process().children():
                try:
                    if "helpers.headless.execute" in child.cmdline():
                        peak.append(child.memory_info().rss)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=measure)
    watcher.start()
    try:
        assert book.run() == "ok"
    finally:
        done.set()
        watcher.join()
    assert 20_000_000 < max(peak) < 300_000_000
    text = (book.out / "notebooks/00_any.ipynb").read_text()
    assert start in text and text.count(CUT.strip()) == 1 and len(text) < 1.2 * CELL + 100_000
    assert "the next cell" in text and CUT.strip() in (book.out / "notebooks/00_any.html").read_text()


@pytest.mark.parametrize("shown", ["print('z' * 1000)", "display(1)"])
def test_endless_output_ends_at_the_limit(book, shown):
    book.write("00_any", f"while True: {shown}")
    assert book.run(cell_timeout=3) == "timed out" and book.entry("00_any")["seconds"] < 40
    assert book.entry("00_any")["why"].startswith("the cell ran longer than 3 s") and book.entry("00_any")["page"]
    assert len(book.entry("00_any")["last_lines"]) < 20_000


def text(length: int) -> dict:
    return {"name": "stdout", "text": "x" * length}


def test_each_kind_of_output_counts_and_errors_always_pass():
    limit = Limit()
    assert limit.apply("stream", text(100), "a") == ("stream", text(100))
    assert limit.apply("display_data", {"data": {"text/html": "x" * CELL}}, "a") == (
        "stream",
        {"name": "stdout", "text": CUT},
    )
    assert limit.apply("stream", text(1), "a") is None and limit.apply("update_display_data", text(1), "a") is None
    assert limit.apply("status", {"execution_state": "idle"}, "a") == ("status", {"execution_state": "idle"})
    assert limit.apply("error", {"ename": "E", "evalue": "", "traceback": []}, "a")[0] == "error"
    assert limit.apply("stream", text(1), "b") == ("stream", text(1)), "the next cell may put out something again"


def test_a_cell_shows_no_more_things_than_a_page_takes_seconds_for():
    limit = Limit()
    sent = [limit.apply("display_data", {"data": {"text/plain": "1"}, "metadata": {}}, "a") for _ in range(100_000)]
    kinds = [allowed[0] for allowed in sent if allowed]
    assert kinds.count("display_data") < 2000 and kinds[-1] == "stream"


def test_many_cells_together_keep_no_more_than_a_notebook_may():
    limit, kept = Limit(), 0
    for cell in range(50):
        for _ in range(10):
            allowed = limit.apply("stream", {"name": "stdout", "text": "a\n" * 100_000}, str(cell))
            kept += size(*allowed) if allowed else 0
    assert NOTEBOOK * 0.8 < kept < NOTEBOOK * 1.1


def test_an_update_takes_the_place_of_the_former_output():
    limit = Limit()
    for cell in range(8):
        limit.apply("update_display_data", text(CELL // 2), str(cell))
    assert limit.kept == 0 and limit.apply("stream", text(CELL // 2), "next")[1] == text(CELL // 2)


def test_a_long_error_keeps_its_end():
    content = {
        "status": "error",
        "ename": "E",
        "evalue": "x" * 10**6,
        "traceback": [*["f"] * 1000, "y" * 10**6 + "last"],
    }
    short = shorten_error(content)
    assert len(json.dumps(short)) < 50_000 and short["status"] == "error"
    assert short["traceback"][-1].endswith("last")


LONG = 300_000
SHAPES = {
    "one line": "x" * LONG, "returns": "x\r" * (LONG // 2), "lines": "\n" * LONG, "colours": "\x1b[31m" * (LONG // 5),
    "blanks": " " * LONG, "hidden": "\u200b" * LONG, "tags": "<td>" * (LONG // 4), "backslashes": "\\" * LONG,
    "backspaces": "x\b" * (LONG // 2),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_cost_of_a_page_is_linear_in_the_output(tmp_path, shape):
    """Measured in processor time of this process: ten times the output costs about ten times as much."""

    def seconds(piece: str) -> float:
        output = nbformat.v4.new_output("stream", text=piece)
        table = nbformat.v4.new_output("display_data", {"text/html": f"<table><tr><td>{piece}", "text/plain": piece})
        content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output, table])])
        before = time.process_time()
        content = tidy(content)
        failing_cell(content, 1)
        write_pages(content, tmp_path / "any.ipynb")
        return time.process_time() - before

    seconds("x")
    small, large = seconds(SHAPES[shape][: LONG // 10]), seconds(SHAPES[shape])
    assert large < 30 * max(small, 0.1)


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("10%\r50%\r100%\n", "100%\n"),
        ("a\r\nb\r\n", "a\nb\n"),
        ("50%\r", "50%"),
        ("kept\nold\rnew\nlast", "kept\nnew\nlast"),
        ("\u200b\u200b\n", "\\u200b\\u200b\n"),
        ("a\u202eb", "a\\u202eb"),
        ("ä\u200dö é\n \n", "ä\u200dö é\n\n"),
        ("padded over   \rthe bar  \n", "the bar\n"),
    ],
)
def test_a_page_shows_what_a_terminal_would_and_what_nobody_would_see(printed, shown):
    assert as_on_a_terminal(printed) == shown
    assert visible(shown) == shown


def test_standard_error_is_no_red_box(book):
    outputs = [nbformat.v4.new_output("stream", name=name, text=name) for name in ("stderr", "stdout", "stderr")]
    content = tidy(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=outputs)]))
    (output,) = content.cells[0].outputs
    assert (output.name, output.text) == ("stdout", "stderrstdoutstderr")
