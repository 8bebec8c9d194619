"""What looks like a secret, and how it is kept out of everything that is written."""

from __future__ import annotations

import os
import re

_NAME = re.compile(
    r"(^|[_-])(tokens?|secrets?|pass(word|wd|phrase)?|pwd|(api|access|private)[_-]?keys?|credentials?)($|[_-])", re.I
)
_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[A-Z0-9]{16}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_PLAIN = re.compile(r"[a-z]+|/.*")  # a word such as "disabled", or a path: not the value of a secret


def secret_name(name: str) -> bool:
    """Whether a parameter or an environment variable of this name would hold a secret."""
    return bool(_NAME.search(name))


def mask_secrets(value):
    """Replace what looks like an access token, and the values of environment variables whose names say secret.

    Args:
        value: a text, or lists and dictionaries of texts, whose keys are left alone.
    """
    known = [v for name, v in os.environ.items() if secret_name(name) and len(v) >= 8 and not _PLAIN.fullmatch(v)]
    pattern = re.compile("|".join([*map(re.escape, sorted(known, key=len, reverse=True)), _VALUE.pattern]))

    def masked(part):
        if isinstance(part, str):
            return pattern.sub("***", part)
        if isinstance(part, list):
            return [masked(item) for item in part]
        return {key: masked(item) for key, item in part.items()} if isinstance(part, dict) else part

    return masked(value)
