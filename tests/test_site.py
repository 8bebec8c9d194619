"""The site and the slides: what is gathered, which links hold; and the whole build, where its packages are installed."""

import json

from docs.build_site import broken_links, gather
from helpers.runner import find_notebooks

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
