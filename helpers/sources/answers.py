"""Which final answer of a text counts: the rule by which an answer is right."""

from __future__ import annotations

import re
from fractions import Fraction

ANSWER_MARK = "The answer is:"  # of the bundled questions, and of MetaMathQA
_MARKS = re.compile(rf"{ANSWER_MARK}|^####(?=[ \t]*[-+$]?[\d.,/]+[ \t%]*$)|\\boxed(?=\{{)", re.MULTILINE)


def answer_of(text: str) -> str | None:
    r"""The answer behind the last mark of a final answer, in a normal form so that equal answers are equal strings.

    The marks are ``The answer is:`` (the bundled questions, MetaMathQA), a line ``#### 72`` (GSM8K) and ``\boxed{72}`` (MATH).

    The rule: a leading number counts and what is said after it in words does not (``12 GB.`` is 12); thousands separators,
    ``$`` and ``%`` are dropped; decimals, ``a/b`` and ``\frac{a}{b}`` become one fraction in lowest terms (``0.5`` is ``1/2``,
    ``0.33`` is not ``1/3``). Anything else, such as ``3\sqrt{2}``, is compared as text, without spaces, sizes (``\left``),
    units in ``\text{}`` and a leading ``x =``. Two forms of one expression, as ``2(x+1)`` and ``2x+2``, therefore count as
    different.

    Returns:
        A number ("8", "-5/2"), an expression, or None where the mark or the answer is missing.
    """
    *_, mark = [None, *_MARKS.finditer(text)]
    rest = text[mark.end() :] if mark else ""
    rest = re.sub(r"(?<!\w)\*\*([^*]+)\*\*(?!\w)", r"\1", rest)  # Markdown's bold, around the number
    lines = (_boxed(rest) if mark and mark[0] == r"\boxed" else rest).strip().splitlines()
    if not lines:
        return None
    lines[0] = lines[0].removesuffix("**")  # and around the whole sentence
    layout = r"\\(left|right|displaystyle|[!,;: ])|\\text\{[^}]*\}|\^\{?\\circ\}?|\\?[$%]|\\[()\[\]]"
    answer = re.sub(layout, "", re.sub(r"^\\text\{([^{}]*)\}$", r"\1", lines[0]))
    answer = re.sub(r"^[a-zA-Z]\s*=", "", answer.replace("dfrac", "frac").replace("tfrac", "frac").strip())
    answer = re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer.replace("{,}", ","))
    answer = re.sub(r"^\s*(-?)\\frac\{(\d+)\}\{(\d+)\}(?=\W*$)", r"\1\2/\3", answer)
    number = re.match(r"\s*(-?\s?\d*\.?\d+(?:/\d+)?)\.?(?=$|\s*[a-zA-Z(.;]|\s+(?![-+*/^\\]))", answer)
    if number and not re.match(r"[a-zA-Z]\b|[(]", answer[number.end() :].strip()):
        top, _, bottom = number[1].replace(" ", "").partition("/")
        if bottom.strip("0") or not bottom:
            return str(Fraction(top) / Fraction(bottom or 1))
    return re.sub(r"\s", "", answer).rstrip(".") or None


def _boxed(text: str) -> str:
    """What the braces at the start of a text hold, or nothing where they do not close."""
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[1:position]
    return ""
