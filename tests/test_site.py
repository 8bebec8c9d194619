"""The site and the slides: what is gathered, which links hold; and the whole build, where its packages are installed."""

import json

from docs import build_slides, seats
from docs.build_site import Links, broken_links, gather
from helpers.headless import find_notebooks

import nbformat


def test_links_are_followed_and_nothing_is_loaded_from_another_host(tmp_path):
    (tmp_path / "other.html").write_text('<p id="here">')
    (tmp_path / "page.html").write_text(
        '<a href="other.html#here"></a><a href="https://example.org/x"></a><img src="data:image/png;base64,AA">'
        '<a href="gone.html"></a><a href="other.html#gone"></a><a href="http://typo"></a><a href="javascript:1"></a>'
        '<script src="https://cdn.example.org/x.js"></script><link rel="stylesheet" href="//cdn.example.org/x.css">'
    )
    faults = broken_links(tmp_path)
    assert len(faults) == 6
    for number, part in enumerate(("gone.html", "no such place", "http://typo", "javascript:1", "x.js", "x.css")):
        assert part in faults[number]


def test_a_notebook_that_was_not_run_is_shown_without_results_and_says_so(tmp_path):
    executed = tmp_path / "runs/tiny"
    (executed / "notebooks").mkdir(parents=True)
    (executed / "status.json").write_text(
        json.dumps({"notebooks": {"00_setup_check": {"finished": "now", "seconds": 90}}})
    )
    first, *others = find_notebooks()
    ran = nbformat.read(first, 4)
    ran.cells[0].source += "\n\nexecuted copy"
    nbformat.write(ran, executed / "notebooks" / first.name)
    source = tmp_path / "source"
    assert gather(executed, source, "tiny") == [p.stem for p in others]
    assert "executed copy" in nbformat.read(source / "notebooks" / first.name, 4).cells[0].source
    assert "has not been run" in nbformat.read(source / "notebooks" / others[0].name, 4).cells[1].source
    assert "| 1.5 |" in (source / "results.md").read_text()
    assert "](notebooks/images/" in (source / "index.md").read_text()


def test_a_seat_needs_its_prediction_and_a_gigabyte_and_leaves_a_tenth_of_the_card():
    assert seats.seats(24e9, 9.8e9) == 2 and seats.seats(24e9, 9.9e9) == 1


def test_sections_and_steps_begin_slides_code_and_remarks_stay_with_them_and_tags_win():
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [
        markdown("# Title"), code("import os"), code("profile = 'small'"), markdown("## Settings\n\ntext"), code("settings"),
        markdown("## 1. First"), code("a"), code("b"), markdown("more"), code("c"), code("del c", metadata={"slideshow": {"slide_type": "skip"}}),
        markdown("end\n\n## What you saw\n\nthat\n\n## Next\n\nthis"),
    ]  # fmt: skip
    tagged = build_slides.tag(build_slides.split(nbformat.v4.new_notebook(cells=cells))).cells
    places = [(cell.source.splitlines()[0], cell.metadata["slideshow"]["slide_type"]) for cell in tagged]
    assert places == [
        ("# Title", "slide"), ("import os", "skip"), ("profile = 'small'", "skip"), ("## Settings", "skip"), ("settings", "skip"),
        ("## 1. First", "slide"), ("a", "-"), ("b", "-"), ("more", "subslide"), ("c", "-"), ("del c", "skip"), ("end", "-"),
        ("## What you saw", "slide"), ("## Next", "slide"),
    ]  # fmt: skip


def test_a_deck_loads_nothing_from_another_host_and_has_its_formulas(tmp_path):
    deck = build_slides.write_deck(find_notebooks("02")[0], tmp_path)
    links = Links(deck)
    assert links.loaded and all(link.startswith(("reveal.js/", "data:")) for link in links.loaded)
    assert deck.read_text().count("<math") > 20 and "import(" not in deck.read_text()
