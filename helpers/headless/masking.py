"""What looks like a secret, and how it is kept out of everything that is written."""

from __future__ import annotations

import html
import json
import os
import re
from functools import lru_cache
from urllib.parse import quote

_WORDS = (
    r"tokens?|secrets?|pass(?:word|wd|phrase)?|pwd|(?:api|access|private|secret)[_-]?keys?|credentials?|signature|sig"
)
_NAME = re.compile(rf"(?:^|[_-])(?:{_WORDS})(?:$|[_-])", re.IGNORECASE)
# As their issuers document them, by pieces of text without which they cannot occur: most texts need no search at all.
_FORMS = {
    ("hf_", "api_org_"): r"(?:hf|api_org)_[A-Za-z0-9]{16,}",  # Hugging Face
    ("gh", "github_pat_"): r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}",
    ("gl",): r"gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent|oas|imt)-[\w.-]{20,}",  # GitLab
    ("sk-", "sk_", "rk_"): r"(?<![A-Za-z])sk-[A-Za-z0-9_-]{20,}|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",  # OpenAI, Stripe
    ("akia", "asia"): r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",  # Amazon
    ("aiza", "ya29.", "gocspx-"): r"\bAIza[\w-]{35}|\bya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}",  # Google
    ("xox", "xapp-", "hooks.slack"): r"xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|hooks\.slack\.com/services/[\w/]{20,}",
    ("pypi-", "npm_", "sg."): r"pypi-[\w-]{50,}|npm_[A-Za-z0-9]{36}\b|\bSG\.[\w-]{16,}\.[\w-]{16,}",
    ("eyj",): r"\beyJ[\w-]{8,}\.eyJ[\w-]{4,}\.[\w-]*",  # JSON web tokens
    ("private key",): r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]{0,20}PRIVATE KEY-----|\Z)",
    ("://",): r"(?<=://)[^/\s:@\"'<>]{0,200}:[^/\s@\"'<>]{1,500}(?=@)",  # user:password@host
    # in an address, such as Jupyter's ?token=; a short number is none, such as that of max_tokens=1024
    ("=",): rf"(?i:(?<=[?&;])((?:[\w-]{{0,40}}[_-])?(?:{_WORDS})=)(?!\d{{1,6}}\b)[^&;#\s\"'<>)]{{4,}})",
    (
        "pass",
    ): r"((?i:pass(?:word|wd|phrase))(?:[\"']|&quot;|&#\d\d;)?\s{0,3}[:=]\s{0,3}(?:[\"']|&quot;|&#\d\d;))[^\s\"'&]{4,}"
    r"|(\b[A-Z_]{0,40}PASS(?:WORD|WD|PHRASE)=)[^\s\"'()$]{4,}",
    ("authorization",): r"(?i:(\bauthorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?(?:bearer|basic|token)\s{1,3})"
    r"[\w.~+/=-]{6,})",
}
_FLAGS = re.compile(
    r"true|false|yes|no|on|off|none|null|(en|dis)abled?|default|required|optional|\d{1,4}", re.IGNORECASE
)


def secret_name(name: str) -> bool:
    """Whether a parameter or an environment variable of this name would hold a secret."""
    return bool(_NAME.search(name))


def mask_secrets(value):
    """Replace what looks like an access token, and the values of environment variables whose names say secret.

    Args:
        value: a text, or lists and dictionaries of texts, whose keys are left alone.
    """
    values = tuple(sorted(v for name, v in os.environ.items() if secret_name(name) and _is_secret(v)))

    def masked(item):
        if isinstance(item, str):
            lower = item.lower()
            forms = tuple(form for pieces, form in _FORMS.items() if any(piece in lower for piece in pieces))
            return _pattern(values, forms).sub(_replacement, item) if values or forms else item
        if isinstance(item, list):
            return [masked(element) for element in item]
        return {key: masked(element) for key, element in item.items()} if isinstance(item, dict) else item

    return masked(value)


def _replacement(match: re.Match) -> str:
    """A mask, after the name of what is masked, which is the one group of a form that has any."""
    return f"{next(filter(None, match.groups()), '')}***"


def _is_secret(value: str) -> bool:
    """Whether the value of a variable that is named like a secret can be one: no flag, and no file that exists."""
    is_file = value.startswith(("/", "~")) and os.path.exists(value)
    return len(value) >= 6 and not _FLAGS.fullmatch(value) and not is_file


@lru_cache(maxsize=256)
def _pattern(values: tuple[str, ...], forms: tuple[str, ...]) -> re.Pattern:
    """These forms, and these values as they are and as pages, addresses and JSON write them."""
    written = set(values)
    for value in values:
        page = html.escape(value)
        written |= {page, html.escape(value, quote=False), page.replace("&#x27;", "&#39;").replace("&quot;", "&#34;")}
        written |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
        written |= {quote(value), quote(value, safe="")}
    return re.compile("|".join([*map(re.escape, sorted(written, key=len, reverse=True)), *forms]))
