"""The pages: what is generated in them is up to date, README stays short, and the instructor's pages fit the notebooks."""

import json
import re

from docs import figures
from helpers.headless import find_notebooks
from helpers.settings import ROOT

import nbformat
import pytest


@pytest.mark.parametrize("page", figures.pages(), ids=lambda page: page.stem)
def test_the_generated_blocks_are_up_to_date(page):
    assert figures.renewed(page) == page.read_text(encoding="utf-8"), "run `python -m docs.figures`"


def test_a_block_is_renewed_and_the_text_around_it_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- generated: seats -->\nold\n<!-- end -->\nafter\n")
    text = figures.renewed(page)
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| `small`, lora | " in text


def test_the_times_of_a_run_are_kept_without_those_of_a_notebook_that_failed(tmp_path, monkeypatch):
    entries = {"00_a": {"status": "ok", "seconds": 61.2, "peak": 5e8}, "01_b": {"status": "failed", "seconds": 3}}
    (tmp_path / "status.json").write_text(json.dumps({"notebooks": entries}))
    monkeypatch.setattr(figures, "REFERENCE", tmp_path)
    content = json.loads(figures.keep(tmp_path, "here").read_text())
    assert content["rows"] == [{"notebook": "00_a", "seconds": 61.2, "resident": 5e8}] and content["device"]
    assert (figures.duration(61.2), figures.duration(59), figures.duration(None)) == ("1 min 1 s", "59 s", "-")
    assert (figures.gigabytes(5e8), figures.gigabytes(None)) == ("0.5 GB", "-")


def test_the_readme_fits_on_a_few_screens_and_shows_what_a_newcomer_needs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200 and len(text.encode()) <= 12_000
    top = text.partition("## The notebooks")[0]
    for needed in ("git clone", "make run-all", "make test", "make lab", "ROCm", "CUDA", "no GPU", "small-cpu.png"):
        assert needed in top, needed


def test_every_page_is_listed_on_the_site():
    listed = (ROOT / "docs/index.md").read_text(encoding="utf-8").splitlines()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT).with_suffix("")
        assert page.name == "index.md" or f"/{name}" in listed, name


def test_the_answer_key_has_each_exercise():
    key = (ROOT / "docs/instructor/answers.md").read_text(encoding="utf-8")
    for notebook in find_notebooks():
        prose = "\n".join(c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "markdown")
        for title in re.findall(r"^### (\d\. .+)$", prose.partition("## Exercises")[2], re.MULTILINE):
            section = key.partition(f"\n## {notebook.stem[:2]} ")[2].partition("\n## ")[0]
            assert f"\n| {title} | " in section, f"{notebook.stem}: the answer key lacks {title!r}"


def test_the_minutes_of_the_half_day_add_up():
    day = (
        (ROOT / "docs/instructor/run_sheet.md")
        .read_text(encoding="utf-8")
        .partition("## Half a day")[2]
        .partition("## A whole")[0]
    )
    rows = re.findall(r"^\| (\**)(\d):(\d\d)\** \| \**(\d*)\** \|", day, re.MULTILINE)
    steps = [(60 * int(hour) + int(minute), int(length or 0)) for bold, hour, minute, length in rows if not bold]
    assert steps[0][0] == 0 and len(steps) > 15
    for (start, length), (following, _) in zip(steps, steps[1:], strict=False):
        assert start + length == following, f"the step at minute {start}"
