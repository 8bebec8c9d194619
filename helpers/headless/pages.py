"""The pages that ``make run-all`` leaves: each executed notebook as HTML, and the index that lists them."""

from __future__ import annotations

import html
import re
from itertools import groupby
from pathlib import Path

from helpers.headless.display import visible
from helpers.headless.masking import mask_secrets
from helpers.records import write_atomically

_MARKS = {"ok": "passed", "running": "was running"}
_INDEX = Path(__file__).with_name("index.html.j2")


def headings(cells: list) -> list[str]:
    """For each cell, the text of the last markdown heading above it."""
    above, last = [], ""
    for cell in cells:
        if cell.cell_type == "markdown":
            last = (re.findall(r"^#+ *(.+)", cell.source, re.MULTILINE) or [last])[-1].strip()
        above.append(last)
    return above


def tidy(content):
    """An executed notebook without secrets.

    The pieces of printed text are joined, without a difference between standard output and error, and of a progress bar
    stays what a terminal would show: its end.
    """
    import nbformat

    for cell in content.cells:
        if cell.cell_type == "code":
            outputs, cell.outputs = cell.outputs, []
            for printed, group in groupby(outputs, lambda output: output.output_type == "stream"):
                pieces = [*group]
                if printed:
                    text = as_on_a_terminal("".join(piece.text for piece in pieces))
                    pieces = [nbformat.v4.new_output("stream", text=text)]
                cell.outputs += pieces
    return nbformat.from_dict(mask_secrets(content))


def as_on_a_terminal(text: str) -> str:
    """A text without what a carriage return replaced, and with invisible characters written out."""
    lines = text.replace("\r\n", "\n").split("\n")
    return visible("\n".join(line.rstrip("\r").rpartition("\r")[2].rstrip(" ") for line in lines))


def failing_cell(content, number: int, lines: int = 15) -> dict[str, str]:
    """The source of code cell ``number``, counted from 1, and the last lines of its output, without colour codes."""
    cell = [cell for cell in content.cells if cell.cell_type == "code"][number - 1]
    texts = ["\n".join(output.traceback) if "traceback" in output else _text(output) for output in cell.outputs]
    end = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(texts)[-50_000:]).rstrip()
    return {"source": cell.source[:20_000], "last_lines": "\n".join(line[:1000] for line in end.splitlines()[-lines:])}


def _text(output) -> str:
    data = output.get("data", {})
    return output.get("text") or str(data.get("text/markdown") or data.get("text/plain", ""))


def markdown_to_html(source: str, escape: bool = False) -> str:
    """Markdown with its formulas as MathML, which browsers show without a script and without a network.

    Args:
        escape: show HTML in it as text, and leave out addresses that run code: for what a model may have written.
    """
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

    renderer = Renderer(escape=escape, allow_harmful_protocols=None if escape else True)
    return MarkdownWithMath(renderer=renderer).render(source)


def output_to_html(output) -> str:
    """One output of a cell as HTML: a figure, a table or a text."""
    data = output.get("data", {})
    if "text/html" in data:
        return data["text/html"]
    if len(data.get("text/markdown", "")) in range(1, 20_000):  # the parser takes minutes for some long texts
        return markdown_to_html(data["text/markdown"], escape=True)
    if "image/png" in data:
        return f'<img alt="figure" src="data:image/png;base64,{data["image/png"].strip()}">'
    return f"<pre>{html.escape(_text(output))}</pre>"


def write_pages(content, notebook: Path) -> None:
    """Write an executed notebook, its page beside it, and for the index the outputs of its cells tagged ``story``.

    Raises:
        RecordError: if one cannot be written.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.filters.ansi import ansi2html, strip_ansi

    def coloured(text: str) -> str:  # nbconvert copies the rest of a text at each colour code
        return ansi2html(text if text.count("\x1b[") < 1000 else strip_ansi(text))

    write_atomically(notebook, nbformat.writes(content))
    story = []
    for cell, heading in zip(content.cells, headings(content.cells), strict=True):
        for output in cell.get("outputs", []):
            if "story" in cell.metadata.get("tags", []):
                story.append(f'<h3>{html.escape(heading)}</h3><div class="result">{output_to_html(output)}</div>')
            if "text/markdown" in output.get("data", {}):
                output.data = {"text/html": output_to_html(output)}
    write_atomically(notebook.with_suffix(".story.html"), "\n".join(story))
    exporter = HTMLExporter(template_name="lab", mathjax_url="", require_js_url="")
    exporter.register_filter("markdown2html", markdown_to_html)
    exporter.register_filter("ansi2html", coloured)
    write_atomically(notebook.with_suffix(".html"), exporter.from_notebook_node(content)[0])


def write_index(folder: Path, profile: str, notebooks: dict[str, dict]) -> Path:
    """Write ``index.html``: where the run stopped, what it found, and the status of each notebook.

    Args:
        folder: of the run; the executed notebooks lie in its ``notebooks``.
        profile: its name.
        notebooks: the entries of the status file by name.
    """
    from jinja2 import Template

    passed = [name for name, entry in sorted(notebooks.items()) if entry["status"] == "ok" and entry.get("page")]
    stories = [folder / "notebooks" / f"{name}.story.html" for name in passed]
    page = Template(_INDEX.read_text(encoding="utf-8"), autoescape=True).render(
        profile=profile, notebooks=sorted(notebooks.items()), marks=_MARKS,
        story=[story.read_text(encoding="utf-8") for story in stories if story.is_file()],
    )  # fmt: skip
    write_atomically(folder / "index.html", page)
    return folder / "index.html"
