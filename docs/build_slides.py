"""Make a short deck of slides from each executed notebook: ``python -m docs.build_slides``, which `make slides` calls.

A deck opens with what the notebook must land and ends with the question to ask, both from the run sheet. Between them stands
one slide for each figure, at full width; its title is that of the figure, or the section's. Tables and code have a slide only
where that is the point, which a code cell says in its metadata: ``{"slide": {"title": "LoRA keeps the base frozen"}}`` shows
what the cell shows under that title, ``"code": true`` the code as well, and ``"slide": false`` leaves a figure out. The prose
of a section is in the speaker's notes (press S). reveal.js comes out of a Python package, and nothing is loaded from another
host.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from html import unescape
from pathlib import Path

from docs.build_site import executed_run
from helpers.headless import find_notebooks, markdown_to_html
from helpers.settings import ROOT, shown

import nbformat
from jinja2 import Template
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

LEFT_OUT = ("Settings", "Exercises", "Next")  # sections without slides
RUN_SHEET = ROOT / "docs" / "instructor" / "run_sheet.md"
TEMPLATE = ROOT / "docs" / "slides" / "deck.html.j2"


@dataclass
class Slide:
    """A title that says the point, and what is shown below it, in HTML; notes are for the speaker alone."""

    title: str
    body: str
    notes: str = ""


def takeaways() -> dict[str, tuple[str, str]]:
    """The sentence that a notebook must land and the question to ask, by its number, from the table in the run sheet."""
    text = RUN_SHEET.read_text(encoding="utf-8") if RUN_SHEET.is_file() else ""
    rows = re.findall(r"^\| (\d\d) \| (.+?) \| (.+?) \|$", text.partition("## What to take away")[2], re.MULTILINE)
    return {number: (sentence, question) for number, sentence, question in rows}


def sections(notebook) -> list[tuple[str, list]]:
    """The headings of the notebook's sections, without their numbers, each with its cells; the first one has no heading."""
    found: list[tuple[str, list]] = [("", [])]
    for cell in notebook.cells:
        parts = re.split(r"\n(?=## )", cell.source) if cell.cell_type == "markdown" else [cell.source]
        for part in parts:
            if cell.cell_type == "markdown" and part.startswith("## "):
                found.append((re.sub(r"^## (\d+\. )?", "", part.splitlines()[0]), []))
            found[-1][1].append(nbformat.from_dict(cell | {"source": part}))
    return found


def shown_by(cell) -> list[str]:
    """What the cell shows in HTML, one text for each figure; its tables, where there is no figure, in one."""
    parts = [o.data["text/html"] for o in cell.get("outputs", []) if "text/html" in o.get("data", {})]
    figures = [f'<div class="figure">{image}</div>' for part in parts for image in re.findall(r"<img [^>]*>", part)]
    return figures or ["\n".join(parts)]


def figure_title(html: str) -> str:
    """The title of a figure, with which its description begins; empty where it has none, or each of its panels has one."""
    alt = unescape(next(iter(re.findall(r'<img alt="([^"]*)"', html)), ""))
    first, several = alt.partition(". ")[0], alt.count("across: ") > 1
    return "" if first.startswith("across: ") or (several and ";" in first) else first.partition(";")[0].strip(". ")


def slides_of(heading: str, cells: list) -> list[Slide]:
    """The slides of one section."""
    notes = markdown_to_html("\n\n".join(c.source for c in cells if c.cell_type == "markdown"))
    made = []
    for cell in (c for c in cells if c.cell_type == "code"):
        for body in shown_by(cell):
            wanted = cell.metadata.get("slide", {} if "<img" in body else False)
            if wanted is False:
                continue
            code = highlight(cell.source, PythonLexer(), HtmlFormatter(cssclass="code")) if wanted.get("code") else ""
            made.append(Slide(wanted.get("title") or figure_title(body) or heading, code + body, notes))
    return made


def deck(notebook, number: str) -> list[Slide]:
    """All slides of a notebook."""
    title = re.match(r"# (.*)", notebook.cells[0].source)[1]
    sentence, question = takeaways().get(number, ("", ""))
    made = [Slide(title, f'<div class="large">{markdown_to_html(sentence)}</div>')]
    for heading, cells in sections(notebook)[1:]:
        if heading == "What you saw":
            text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown").partition("\n")[2]
            made.append(Slide(heading, f'<div class="text">{markdown_to_html(text)}</div>'))
        elif heading not in LEFT_OUT:
            made += slides_of(heading, cells)
    return (
        [*made, Slide("Before you go on", f'<div class="large">{markdown_to_html(question)}</div>')]
        if question
        else made
    )


def write_deck(executed: Path, folder: Path) -> Path:
    """Write one deck; its reveal.js is expected in ``folder``."""
    made = deck(nbformat.read(executed, as_version=4), executed.stem[:2])
    page = Template(TEMPLATE.read_text(encoding="utf-8"), autoescape=False)
    target = folder / f"{executed.stem}.html"
    colours = HtmlFormatter().get_style_defs(".code")
    target.write_text(page.render(name=made[0].title, slides=made, colours=colours), encoding="utf-8")
    return target


def build(executed: Path, folder: Path) -> list[Path]:
    """Write a deck for each notebook of the series that the folder holds executed, and reveal.js beside them."""
    import sphinx_revealjs  # carries reveal.js

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(sphinx_revealjs.__file__).parent / "_static" / "revealjs", folder / "reveal.js")
    return [write_deck(executed / n.name, folder) for n in find_notebooks() if (executed / n.name).is_file()]


if __name__ == "__main__":
    decks = build(executed_run("slides") / "notebooks", ROOT / "site" / "slides")
    print("\n".join(map(shown, decks)))
