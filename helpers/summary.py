"""The pages that ``make run-all`` leaves: each executed notebook as HTML, and the index that lists them."""

from __future__ import annotations

import html
import re
from pathlib import Path

from helpers.records import write_atomically

import nbformat

_SECRET = re.compile(r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}")
_MARKS = {"ok": "passed", "running": "was running"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .4rem .8rem; border-bottom: 1px solid #8886 }
pre { overflow: auto; padding: 1rem; border: 1px solid #8886; font-size: 13px } .number { text-align: right }
"""


def mask_secrets(text: str) -> str:
    """Replace what looks like an access token, so that none reaches a file."""
    return _SECRET.sub("***", text)


def tidy(notebook: Path) -> None:
    """Rewrite an executed notebook without secrets, and with what a terminal would show of a progress bar: its end."""
    content = nbformat.reads(mask_secrets(notebook.read_text(encoding="utf-8")), as_version=4)
    for cell in content.cells:
        merged: list = []
        for output in cell.get("outputs", []):
            if merged and output.output_type == merged[-1].output_type == "stream" and output.name == merged[-1].name:
                merged[-1].text += output.text
            else:
                merged.append(output)
        for output in merged:
            if output.output_type == "stream":
                output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
        if cell.cell_type == "code":
            cell.outputs = merged
    write_atomically(notebook, nbformat.writes(content))


def markdown_to_html(source: str) -> str:
    """Markdown with its formulas as MathML, which browsers show without a script and without a network."""
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return convert(body, display="block")

        def inline_math(self, body: str) -> str:
            return convert(body)

    return MarkdownWithMath(renderer=Renderer(escape=False)).render(source)


def write_html(notebook: Path) -> Path:
    """Render an executed notebook beside itself, figures inside."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="lab", mathjax_url="", require_js_url="")
    exporter.register_filter("markdown2html", markdown_to_html)
    body, _ = exporter.from_filename(str(notebook))
    page = notebook.with_suffix(".html")
    write_atomically(page, body)
    return page


def last_lines(notebook: Path, lines: int = 15) -> str:
    """The end of the first error in an executed notebook, without colour codes."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
                return "\n".join(text.splitlines()[-lines:])
    return ""


def write_index(folder: Path, status: dict) -> Path:
    """Write ``index.html``: one row a notebook with status, seconds and link, and the failing cell's last lines."""
    rows, failures = [], []
    for name, entry in sorted(status["notebooks"].items()):
        page = folder / "notebooks" / f"{name}.html"
        link = f'<a href="notebooks/{name}.html">{html.escape(name)}</a>' if page.is_file() else html.escape(name)
        state = _MARKS.get(entry["status"], entry["status"])
        seconds = f"{entry['seconds']:.0f}" if entry.get("seconds") is not None else ""
        rows.append(f'<tr><td>{link}</td><td>{state}</td><td class="number">{seconds}</td></tr>')
        if entry["status"] not in ("ok", "running"):
            executed = folder / "notebooks" / f"{name}.ipynb"
            tail = last_lines(executed) if executed.is_file() else ""
            where = (
                f"cell {entry.get('cell')} of {entry.get('cells')} ({entry.get('heading')})"
                if entry.get("cell")
                else ""
            )
            failures.append(
                f"<h2>{html.escape(name)}: {html.escape(entry['status'])}</h2>"
                f"<p>{html.escape(where)} {html.escape(entry.get('why') or '')}</p>"
                + (f"<pre>{html.escape(mask_secrets(tail))}</pre>" if tail else "")
            )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Fine-tuning notebooks</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>Profile {html.escape(status['profile'])}</h1><table><tr><th>notebook</th><th>status</th>"
        f'<th class="number">seconds</th></tr>{"".join(rows)}</table>{"".join(failures)}</body></html>'
    )
    path = folder / "index.html"
    write_atomically(path, page)
    return path
