"""The site and the slides: what is gathered, which links hold; and the whole build, where its packages are installed."""

import json

from docs import build_slides, seats
from docs.build_site import Links, broken_links, gather
from docs.conf import NOT_SEARCHED, Text
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
    page = nbformat.read(source / "notebooks" / first.name, 4).cells
    assert "executed copy" in page[0].source and page[0].source.startswith("# 00 ")
    assert f"<../downloads/{first.name}>" in page[1].source
    assert (source / "downloads" / first.name).read_bytes() == first.read_bytes()
    assert "has not been run" in nbformat.read(source / "notebooks" / others[0].name, 4).cells[2].source
    assert "| 1.5 |" in (source / "results.md").read_text()
    assert "](notebooks/images/" in (source / "index.md").read_text()
    contributing = (source / "CONTRIBUTING.md").read_text()
    assert "runs .ci/run on" in contributing and "[CHANGELOG.md](CHANGELOG.md)" in contributing


def test_a_seat_needs_its_prediction_and_a_gigabyte_and_leaves_a_tenth_of_the_card():
    assert seats.seats(24e9, 9.8e9) == 2 and seats.seats(24e9, 9.9e9) == 1


def code(source: str, html: str = "", **metadata):
    outputs = [nbformat.v4.new_output("display_data", {"text/html": html})] if html else []
    return nbformat.v4.new_code_cell(source, outputs=outputs, metadata=metadata)


def figure(alt: str) -> str:
    return f'<img alt="{alt}" src="data:image/png;base64,AA">'


def test_a_deck_has_its_figures_what_is_marked_and_the_sentence_and_question_of_the_run_sheet():
    markdown, notebook = nbformat.v4.new_markdown_cell, nbformat.v4.new_notebook()
    notebook.cells = [
        markdown("# Title"), code("import os"), markdown("## Settings\n\ntext"), code("settings", figure("No slide; across: x.")),
        markdown("## 1. First\n\nprose"), code("a", figure("LoRA &amp; full; across: step.")), code("b", "<table>1</table>"),
        code("c", figure("Both. Left; across: x. Right; across: y.")), code("d", figure("Left; across: x. Right; across: y.") + figure("across: x.")),
        markdown("more\n\n## 2. Second"), code("e = 1", "<table>2</table>", slide={"title": "The point", "code": True}),
        code("f", figure("Unwanted"), slide=False), markdown("## What you saw\n\n- this\n\n## Next\n\nthat"),
    ]  # fmt: skip
    made = build_slides.deck(notebook, "02")
    sentence, question = build_slides.takeaways()["02"]
    titles = ["Title", "LoRA & full", "Both", "First", "First", "The point", "What you saw", "Before you go on"]
    assert [slide.title for slide in made] == titles
    assert (
        "prose" in made[1].notes
        and "more" in made[1].notes
        and "<table>2" in made[5].body
        and "highlight" not in made[1].body
    )
    assert 'class="code"' in made[5].body and "<li>this</li>" in made[6].body and "that" not in made[6].body
    assert sentence.partition("`")[0][:20] in made[0].body and question[:20] in made[-1].body


def test_the_run_sheet_has_a_sentence_and_a_question_for_every_notebook():
    assert set(build_slides.takeaways()) >= {notebook.stem[:2] for notebook in find_notebooks()}


def test_a_deck_loads_nothing_from_another_host(tmp_path):
    deck = build_slides.write_deck(find_notebooks("02")[0], tmp_path)
    links = Links(deck)
    assert links.loaded and all(link.startswith(("reveal.js/", "data:")) for link in links.loaded)
    assert "import(" not in deck.read_text()


def test_excerpts_hold_the_words_of_a_page_and_no_scripts():
    page = "<nav>menu</nav><article><h1>A b</h1><script>c()</script><style>d</style><p>e &amp; f</p><pre><span>g</span>(<span>h</span>)</pre></article><footer>g</footer>"
    assert Text(page).words == ["A", "b", "e", "&", "f", "g(h)"]


def test_a_learners_search_finds_no_solutions():
    assert all(NOT_SEARCHED.match(page) for page in ("notebooks/solutions/02_lora_train", "docs/instructor/answers"))
    assert not any(
        NOT_SEARCHED.match(page) for page in ("notebooks/02_lora_train", "docs/setup", "docs/instructor/handout")
    )
