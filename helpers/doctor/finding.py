"""One finding of the doctor, and how a list of them is shown: as text on a terminal, as a table in a notebook."""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import dataclass
from html import escape

LEVELS = {"ok": ("✓", "32"), "warning": ("!", "33"), "problem": ("✗", "31")}  # sign and colour of a terminal


@dataclass(frozen=True)
class Finding:
    """What was looked at, "ok", "warning" or "problem", one sentence, what to do, and where that is from (a URL)."""

    level: str
    says: str
    remedy: str = ""
    source: str = ""
    check: str = ""


def ok(says: str, remedy: str = "", source: str = "") -> Finding:
    return Finding("ok", says, remedy, source)


def warning(says: str, remedy: str = "", source: str = "") -> Finding:
    return Finding("warning", says, remedy, source)


def problem(says: str, remedy: str = "", source: str = "") -> Finding:
    return Finding("problem", says, remedy, source)


def gb(size: float | None) -> str:
    """Bytes as decimal gigabytes, as the series counts them; empty for unknown."""
    return "" if size is None else f"{size / 1e9:.0f} GB" if size >= 20e9 else f"{size / 1e9:.1f} GB"


class Report(list):
    """The findings in order. In a notebook it shows itself as a table."""

    @property
    def worst(self) -> str:
        return max((f.level for f in self), key=list(LEVELS).index, default="ok")

    def summary(self) -> str:
        """How many of each."""
        counts = {level: sum(f.level == level for f in self) for level in reversed(LEVELS)}
        words = [f"{n} {level}{'s' * (n > 1 and level != 'ok')}" for level, n in counts.items() if n]
        return ", ".join(words)

    def text(self, width: int | None = None, colour: bool = False) -> str:
        """For a terminal: sign, level, what was looked at, the sentence; remedy and source below where there is one."""
        width = width or min(120, max(60, shutil.get_terminal_size().columns))
        column = 2 + max((len(f.check) for f in self), default=0)
        lines = []
        for finding in self:
            sign, code = LEVELS[finding.level]
            label = f"{sign} {finding.level:<8} "
            body = textwrap.wrap(finding.says, width - len(label) - column) or [""]
            extras = [("Do: ", finding.remedy), ("See ", finding.source if finding.remedy else "")]
            for word, extra in extras:
                body += [word + part for part in textwrap.wrap(extra, width - len(label) - column - 4, **_WHOLE)][:1]
                body += ["    " + part for part in textwrap.wrap(extra, width - len(label) - column - 4, **_WHOLE)[1:]]
            head = f"\033[{code}m{label}\033[0m" if colour else label
            lines.append(head + f"{finding.check:<{column}}" + body[0])
            lines += [" " * (len(label) + column) + more for more in body[1:]]
        return "\n".join([*lines, "", self.summary()])

    def __repr__(self) -> str:
        return self.text(width=100)

    def _repr_html_(self) -> str:
        rows = []
        for finding in self:
            sign, tint = LEVELS[finding.level][0], _TINTS[finding.level]
            text = _code(finding.says)
            if finding.remedy:
                text += f'<div style="margin-top:3px"><b>Do:</b> {_code(finding.remedy)}</div>'
            source = (
                f'<a href="{escape(finding.source)}" target="_blank" rel="noopener">source</a>'
                if finding.source
                else ""
            )
            level = f'<b style="color:{tint};white-space:nowrap">{sign} {finding.level}</b>'
            cells = (level, f'<span style="white-space:nowrap">{escape(finding.check)}</span>', text, source)
            rows.append("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>")
        return f'<table style="border-collapse:collapse;max-width:900px">{"".join(rows)}</table>'


_TINTS = {"ok": "#0072B2", "warning": "#B26B00", "problem": "#C1272D"}
_WHOLE = {"break_long_words": False, "break_on_hyphens": False}  # commands and addresses stay in one piece
_CELL = "text-align:left;vertical-align:top;padding:5px 10px;white-space:normal;border-bottom:1px solid #8884"


def _code(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def print_report(report: Report) -> None:
    print(report.text(colour=sys.stdout.isatty()))
