"""Make a deck of slides from each executed notebook: ``python -m docs.build_slides``, which `make slides` calls.

nbconvert makes the slides and reveal.js, out of a Python package, shows them; formulas are MathML. Where a cell goes is
said by its slideshow metadata (in JupyterLab: Property Inspector, Slide Type), and by :func:`tag` where there is none.
"""

from __future__ import annotations

import re
import shutil
from itertools import zip_longest
from pathlib import Path

from docs.build_site import executed_run
from helpers.headless import find_notebooks, markdown_to_html
from helpers.settings import ROOT, shown

import nbformat


def split(notebook):
    """Cut each markdown cell at its section headings, so that every section can begin a slide."""
    cells = []
    for cell in notebook.cells:
        parts = re.split(r"\n(?=## )", cell.source) if cell.cell_type == "markdown" else [cell.source]
        cells += [nbformat.from_dict(cell | {"source": part, "id": f"{cell.id}-{n}"}) for n, part in enumerate(parts)]
    notebook.cells = cells
    return notebook


def tag(notebook):
    """Give each cell without slideshow metadata its place.

    A section begins a slide to the right, its further steps follow below, each with the code that belongs to it and what
    is said of the result; what stands before the first section (imports, parameters, settings) is left out. The deck
    itself goes on to another slide where one is too full.
    """
    in_a_section = False
    cells = [cell for cell in notebook.cells if cell.metadata.get("slideshow", {}).get("slide_type") != "skip"]
    for cell, following in zip_longest(cells, cells[1:]):
        markdown, title = cell.cell_type == "markdown", cell.source.startswith("# ")
        heading = markdown and cell.source.startswith(("# ", "## "))
        if heading and not title:
            in_a_section = not cell.source.startswith("## Settings")
        if heading and (in_a_section or title):
            place = "slide"
        elif not in_a_section:
            place = "skip"
        else:
            step = markdown and (cell.source.startswith("#") or (following and following.cell_type == "code"))
            place = "subslide" if step else "-"
        cell.metadata.setdefault("slideshow", {}).setdefault("slide_type", place)
    return notebook


def write_deck(executed: Path, folder: Path) -> Path:
    """Write one deck; its reveal.js is expected in ``folder``."""
    from nbconvert import SlidesExporter

    exporter = SlidesExporter(
        template_name="slides", extra_template_basedirs=[str(ROOT / "docs")], reveal_url_prefix="reveal.js", reveal_theme="white", mathjax_url="",
    )  # fmt: skip
    exporter.register_filter("markdown2html", markdown_to_html)
    body, _ = exporter.from_notebook_node(tag(split(nbformat.read(executed, as_version=4))))
    deck = folder / f"{executed.stem}.html"
    deck.write_text(body, encoding="utf-8")
    return deck


def build(executed: Path, folder: Path) -> list[Path]:
    """Write a deck for each notebook of the series that the folder holds executed, and reveal.js beside them."""
    import sphinx_revealjs  # carries reveal.js

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(Path(sphinx_revealjs.__file__).parent / "_static" / "revealjs", folder / "reveal.js")
    return [write_deck(executed / n.name, folder) for n in find_notebooks() if (executed / n.name).is_file()]


if __name__ == "__main__":
    decks = build(executed_run("slides") / "notebooks", ROOT / "site" / "slides")
    print("\n".join(map(shown, decks)))
