"""The pages that ``make run-all`` leaves: each executed notebook as HTML, and the index that lists them."""

from __future__ import annotations

import html
import re
from pathlib import Path

from helpers.headless.masking import mask_secrets
from helpers.records import write_atomically

import nbformat

_MARKS = {"ok": "passed", "running": "was running"}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .4rem .8rem; border-bottom: 1px solid #8886 }
pre { overflow: auto; padding: 1rem; border: 1px solid #8886; font-size: 13px } .number { text-align: right }
"""


def tidy(notebook: Path) -> nbformat.NotebookNode | None:
    """An executed notebook without secrets and papermill's notes (paths of this machine, a status that can be wrong).

    Of a progress bar it keeps what a terminal would show: its end. None if the file is not there or not whole.
    """
    try:
        content = nbformat.read(notebook, as_version=4)
    except (OSError, ValueError):
        return None
    for part in (content, *content.cells):
        part.metadata.pop("papermill", None)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)
    return nbformat.from_dict(mask_secrets(content))


def _merged(outputs: list) -> list:
    """Outputs with consecutive pieces of one stream joined, and without lines that a carriage return replaced."""
    merged: list = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == last.get("output_type") == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    for output in merged:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return merged


def failing_cell(notebook: nbformat.NotebookNode, number: int, lines: int = 15) -> dict[str, str]:
    """The source of code cell ``number``, counted from 1, and the last lines of its output, without colour codes."""
    cell = [cell for cell in notebook.cells if cell.cell_type == "code"][number - 1]
    texts = []
    for output in cell.outputs:
        if output.output_type == "error":
            texts += output.traceback
        else:
            texts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(texts)).rstrip()
    return {"source": cell.source, "last_lines": "\n".join(text.splitlines()[-lines:])}


def markdown_to_html(source: str) -> str:
    """Markdown with its formulas as MathML, which browsers show without a script and without a network."""
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    def formula(body: str, display: str) -> str:
        try:
            return convert(body, display=display)
        except Exception:  # a formula that the converter cannot read is shown as it was written
            return f"<code>{html.escape(body)}</code>"

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return formula(body, "block")

        def inline_math(self, body: str) -> str:
            return formula(body, "inline")

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


def write_index(folder: Path, profile: str, notebooks: dict[str, dict]) -> Path:
    """Write ``index.html``: one row a notebook with status, seconds and link, and the failing cell with its last lines.

    Args:
        folder: of the run; the executed notebooks lie in its ``notebooks``.
        profile: its name.
        notebooks: the entries of the status file by name.
    """
    rows, failures = [], []
    for name, entry in sorted(notebooks.items()):
        title = html.escape(name)
        link = (
            f'<a href="notebooks/{title}.html">{title}</a>' if (folder / f"notebooks/{name}.html").is_file() else title
        )
        state = html.escape(_MARKS.get(entry["status"], entry["status"]))
        seconds = f"{entry['seconds']:.0f}" if entry.get("seconds") is not None else ""
        rows.append(f'<tr><td>{link}</td><td>{state}</td><td class="number">{seconds}</td></tr>')
        if entry["status"] not in _MARKS:
            where = f"Cell {entry['cell']} of {entry['cells']}, {entry['heading']}: " if entry.get("cell") else ""
            failures.append(f"<h2>{title}: {state}</h2><p>{html.escape(where + (entry.get('why') or ''))}</p>")
            for heading, part in (("The cell", "source"), ("The last lines of its output", "last_lines")):
                if entry.get(part):
                    failures.append(f"<h3>{heading}</h3><pre>{html.escape(entry[part])}</pre>")
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Fine-tuning notebooks</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>Profile {html.escape(profile)}</h1><table><tr><th>notebook</th><th>status</th>"
        f'<th class="number">seconds</th></tr>{"".join(rows)}</table>{"".join(failures)}</body></html>'
    )
    path = folder / "index.html"
    write_atomically(path, page)
    return path
