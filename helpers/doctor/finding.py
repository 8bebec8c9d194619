"""One finding of the doctor, and how a list of them is shown; what they say, with remedy and source, is in ``findings.toml``."""

import textwrap
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

LEVELS = {"ok": "✓", "warning": "!", "problem": "✗"}
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

    def text(self, width: int = 100) -> str:
        """For a terminal: sign, level, what was looked at, the sentence; remedy and source below where there is one."""
        lines = []
        for finding in self:
            texts = [f"{LEVELS[finding.level]} {finding.level:<8} {finding.check}: {finding.says}"]
            if finding.remedy:
                texts += [f"{'':11}Do: {finding.remedy}"] + ([f"{'':11}See {finding.source}"] if finding.source else [])
            whole = {"break_long_words": False, "break_on_hyphens": False}  # commands and addresses in one piece
            lines += [textwrap.fill(text, width, subsequent_indent=" " * 11, **whole) for text in texts]
        return "\n".join([*lines, "", self.summary()])
