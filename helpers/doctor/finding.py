"""One finding of the doctor, and how a list of them is shown; what they say, with remedy and source, is in ``findings.toml``."""

import shutil
import textwrap
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LEVELS = {"ok": ("✓", "32"), "warning": ("!", "33"), "problem": ("✗", "31")}  # sign and colour of a terminal
TEXTS = tomllib.loads(Path(__file__).with_name("findings.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Finding:
    """What was looked at, "ok", "warning" or "problem", one sentence, what to do, and where that is from (a URL)."""

    level: str
    says: str
    remedy: str = ""
    source: str = ""
    check: str = ""


def say(name: str, /, **facts) -> Finding:
    """The finding of that name, "check.case" in ``findings.toml``, with the facts filled in."""
    check, case = name.split(".")
    text = TEXTS[check][case]
    return Finding(text["level"], *(text.get(part, "").format(**facts) for part in ("says", "remedy", "source")))


def gb(size: float | None) -> str:
    """Bytes as decimal gigabytes, as the series counts them; empty for unknown."""
    return "" if size is None else f"{size / 1e9:.0f} GB" if size >= 20e9 else f"{size / 1e9:.1f} GB"


class Report(list):
    """The findings in order."""

    @property
    def worst(self) -> str:
        """The highest level among the findings."""
        return max((f.level for f in self), key=list(LEVELS).index, default="ok")

    def summary(self) -> str:
        """How many of each."""
        counts = Counter(f.level for f in self)
        return ", ".join(
            f"{n} {level}{'s' * (n > 1 and level != 'ok')}" for level in reversed(LEVELS) if (n := counts[level])
        )

    def text(self, width: int | None = None, colour: bool = False) -> str:
        """For a terminal: sign, level, what was looked at, the sentence; remedy and source below where there is one."""
        width = width or min(120, max(60, shutil.get_terminal_size().columns))
        column = 13 + max((len(f.check) for f in self), default=0)  # where the sentences begin
        whole = {"break_long_words": False, "break_on_hyphens": False}  # commands and addresses in one piece
        lines = []
        for finding in self:
            sign, number = LEVELS[finding.level]
            label = f"{sign} {finding.level:<8} "
            label = f"\033[{number}m{label}\033[0m" if colour else label
            body = textwrap.wrap(finding.says, width - column) or [""]
            for word, extra in (("Do: ", finding.remedy), ("See ", finding.source if finding.remedy else "")):
                body += textwrap.wrap(extra, width - column, initial_indent=word, subsequent_indent="    ", **whole)
            lines += [label + f"{finding.check:<{column - 11}}" + body[0], *(" " * column + more for more in body[1:])]
        return "\n".join([*lines, "", self.summary()])
