"""Build the site from executed notebooks: ``python -m docs.build_site --profile small``, which `make site` calls.

The pages are the notebooks that the runner left in ``runs/<profile>/notebooks``, the README, the pages in docs/ and a
page of results. After the build, every link is followed inside the site, and checked for its form outside of it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from helpers.comparison import NotComparable, conclusions, table
from helpers.headless import align, find_notebooks
from helpers.records import load_reference, load_series
from helpers.settings import ROOT, shown
from helpers.storage import read_json

import nbformat

NOT_COPIED = shutil.ignore_patterns(
    ".*", "models", "runs", "site", "kit", "my_data", "__pycache__", "*.egg-info", "*.zip"
)
NOT_RUN = ":::{note}\nThis notebook has not been run with the profile `%s`, so it is shown without results.\n:::"
DOWNLOAD = "{download}`Download this notebook <../downloads/%s>`, without its results, to run it in JupyterLab."


def executed_run(target: str) -> Path:
    """The folder of the run that the command line names; where nothing was executed, the end of the program."""
    parser = argparse.ArgumentParser(prog=f"make {target}", description="Show what `make run-all` executed.")
    parser.add_argument("--profile", default="small")
    parser.add_argument("--runs-dir", default="runs", help="where the runs are; relative to the repository")
    given = parser.parse_args()
    executed = ROOT / given.runs_dir / given.profile
    if not any((executed / "notebooks").glob("*.ipynb")):
        found = shown(executed)
        parser.exit(2, f"error: no executed notebooks in {found}: make run-all PROFILE={given.profile} first\n")
    return executed


def gather(executed: Path, source: Path, profile: str) -> list[str]:
    """Copy what the pages are made from: the repository, with executed notebooks in the place of the bare ones.

    Returns:
        The notebooks of the series that were not executed.
    """
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT, source, ignore=NOT_COPIED)
    (source / "downloads").mkdir()
    missing = []
    for notebook in find_notebooks():
        shutil.copy(notebook, source / "downloads")
        ran = executed / "notebooks" / notebook.name
        content = nbformat.read(ran if ran.is_file() else notebook, as_version=4)
        if not ran.is_file():
            missing.append(notebook.stem)
            content.cells.insert(1, nbformat.v4.new_markdown_cell(NOT_RUN % profile))
        content.cells.insert(1, nbformat.v4.new_markdown_cell(DOWNLOAD % notebook.name))
        content.cells[0].source = re.sub(r"^# ", f"# {notebook.stem[:2]} ", content.cells[0].source)
        nbformat.write(content, source / "notebooks" / notebook.name)
    landing = (source / "docs" / "index.md").read_text(encoding="utf-8")
    (source / "index.md").write_text(landing.replace("](../", "]("), encoding="utf-8")
    (source / "docs" / "index.md").unlink()
    for page in [*source.rglob("*.md"), *source.rglob("*.ipynb")]:  # a folder or a hidden file is no page to lead to
        text = page.read_text(encoding="utf-8")
        for link in re.finditer(r"\[([\w./ -]+)\]\((\.?\w[\w./-]*)\)", text):
            if link[2].startswith(".") or (page.parent / link[2]).is_dir():
                text = text.replace(link[0], link[1])
        page.write_text(text, encoding="utf-8")
    (source / "results.md").write_text(results(executed, profile), encoding="utf-8")
    return missing


def results(executed: Path, profile: str) -> str:
    """The page of results: the run that this site shows, and the reference records that come with the repository."""
    status = read_json(executed / "status.json", SystemExit, {"notebooks": dict})["notebooks"]
    page = [
        "# Results",
        f"## The run on these pages\n\nProfile `{profile}`.\n",
        "| notebook | finished (UTC) | minutes |",
        "|---|---|---|",
    ]
    for name, entry in sorted(status.items()):
        page.append(
            f"| [{name}](notebooks/{name}.ipynb) | {entry.get('finished')} | {(entry.get('seconds') or 0) / 60:.1f} |"
        )
    shown_series = {f"Its records, `{profile}`": load_series(executed)}
    shown_series |= {f"Reference: `{name}`": load_reference(name) for name in ("small-cpu", "small-h200")}
    for title, records in shown_series.items():
        if not records:
            continue
        device = next((r.device["name"] for r in records if r.device), "unknown device")
        page.append(
            f"\n## {title}\n\n{escape(device)}, {records[-1].finished[:10]}, torch {records[-1].environment['torch']}\n"
        )
        page.append(f'<div class="table">{align(table(records).to_html(border=0))}</div>')
        try:
            page.append("\n" + "\n".join(f"- {escape(said)}" for said in conclusions(records)))
        except NotComparable as reason:
            page.append(f"\nNo conclusions: {escape(str(reason))}.")
    return "\n".join(page) + "\n"


class Links(HTMLParser):
    """Where a page leads, what it loads, and the places in it that others can lead to."""

    def __init__(self, page: Path):
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.places |= {found[name] for name in ("id", "name") if found.get(name)}
        if found.get("src"):
            self.loaded.append(found["src"])
        if found.get("href"):
            (self.loaded if tag == "link" else self.links).append(found["href"])


def broken_links(folder: Path) -> list[str]:
    """Links that lead nowhere, and whatever a page would load from another host, each with its page."""
    pages = {path.resolve(): Links(path) for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts}
    faults = []
    for page, found in pages.items():
        for link in [*found.links, *found.loaded]:
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if link in found.loaded:
                    faults.append(f"{page.name} loads {link}")
                elif parts.scheme not in ("http", "https", "mailto") or (
                    parts.scheme != "mailto" and "." not in parts.netloc
                ):
                    faults.append(f"{page.name} links to {link}, which is no address")
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.exists():
                faults.append(f"{page.name} links to {link}, which does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                faults.append(f"{page.name} links to {link}: the page has no such place")
    return faults


def build(executed: Path, site: Path, profile: str) -> int:
    """Build ``site/html`` from the folder of a run of the series.

    Returns:
        0, Sphinx's code if it warned of something, or 1 for broken links; what is wrong is printed.
    """
    from sphinx.cmd.build import main as sphinx

    missing = gather(executed, site / "source", profile)
    shutil.rmtree(site / "html", ignore_errors=True)
    options = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "docs"), "-d", str(site / "doctrees")]
    if code := sphinx([*options, str(site / "source"), str(site / "html")]):
        return code
    if faults := broken_links(site / "html"):
        print("error: " + "\n       ".join(faults), file=sys.stderr)
        return 1
    for name in missing:
        print(f"{name} was not run with this profile: it is shown without results")
    print(f"Open {shown(site / 'html' / 'index.html')}")
    return 0


def main() -> int:
    executed = executed_run("site")
    return build(executed, ROOT / "site", executed.name)


if __name__ == "__main__":
    sys.exit(main())
