"""What is known of a GPU, and the values that tools and the kernel give for it. Never imports torch.

What is not said, said as "N/A" or said absurdly (16 EB in use) is None, never 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace

_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}  # the tools write MB and mean MiB
_MOST = 2**50  # bytes: what is beyond is a counter that ran below zero


@dataclass(frozen=True)
class Process:
    """A process that holds GPU memory; ``memory`` is in bytes, ``gpu`` the index where the tool says it."""

    pid: int
    name: str | None = None
    memory: int | None = None
    gpu: int | None = None


@dataclass(frozen=True)
class Card:
    """One GPU. Memory in bytes, ``temperature`` in degrees Celsius, ``power`` in watts; unknown is None."""

    index: int
    name: str | None = None
    gfx: str | None = None
    total: int | None = None
    used: int | None = None
    gtt_total: int | None = None  # main memory that the GPU may use
    gtt_used: int | None = None
    temperature: float | None = None
    power: float | None = None
    compute_partition: str | None = None  # SPX is the whole card, CPX one of its dies
    memory_partition: str | None = None  # NPS1 is all memory as one
    driver: str | None = None
    bus: str | None = None  # the address on the PCI bus, as 0000:03:00.0: the one name that all sources share


@dataclass
class Reading:
    """Cards and processes from one source, and what could not be read, with the reason."""

    cards: list[Card] = field(default_factory=list)
    processes: list[Process] | None = None  # None: not known; empty: none
    troubles: list[str] = field(default_factory=list)


def number(value, unit: str | None = None) -> float | None:
    """A number out of 45, "45.0", "45 W" or {"value": 45, "unit": "W"}, sizes in bytes; None if there is none.

    Args:
        unit: of a size that names none, as "MB".
    """
    if isinstance(value, dict):
        value, unit = value.get("value"), value.get("unit") or unit
    match = re.match(r"(-?\d[\d,]*(?:\.\d+)?)\s*°?\s*([A-Za-z]*)", str(value).strip())
    if not match or isinstance(value, bool) or len(match[1]) > 30:
        return None
    return float(match[1].replace(",", "")) * _UNITS.get(match[2] or unit or "", 1)


def size(value, unit: str | None = None) -> int | None:
    """Bytes, or None for what is no size or larger than any memory."""
    found = number(value, unit)
    return None if found is None or not 0 <= found < _MOST else int(found)


def within(value, least: float, most: float) -> float | None:
    """The number if it lies in the range, else None."""
    found = number(value)
    return None if found is None or not least <= found < most else found


def celsius(*values) -> float | None:
    """The first value that can be a temperature; 0 is what drivers write for a sensor that is off."""
    return next((t for v in values if (t := within(v, 0.1, 150)) is not None), None)


def watts(*values) -> float | None:
    """The first value that can be the power of a card."""
    return next((w for v in values if (w := within(v, 0, 5000)) is not None), None)


def architecture(text) -> str | None:
    """``gfx90a`` out of what tools and torch call it: "gfx90a:sramecc+", "gfx9010" (the step in decimal), 90010."""
    if isinstance(text, int):  # as the kernel numbers it: major * 10000 + minor * 100 + step
        return f"gfx{text // 10000}{text // 100 % 100}{text % 100:x}" if text else None
    match = re.match(r"gfx(\w+)", str(text or "").strip())
    if not match:
        return None
    wrong = re.fullmatch(r"90(1[0-5])", match[1])
    return f"gfx90{int(wrong[1]):x}" if wrong else f"gfx{match[1]}"


def words(value) -> str | None:
    """A name, without the dots of one cut off; None for what is empty, "N/A" or a bare number."""
    text = "" if value is None else str(value).strip().lstrip(".").strip()
    return None if text.upper() in ("", "N/A", "NONE", "UNKNOWN") or re.fullmatch(r"0x[0-9a-fA-F]+", text) else text


def driver(value) -> str | None:
    """The version; of the banner that a driver inside the kernel gives instead, the kernel's version."""
    inbox = re.match(r"Linuxversion([\d.]+(?:-\d+)?)", str(value or ""))
    return f"of Linux {inbox[1]}" if inbox else words(value)


def address(value) -> str | None:
    """An address on the PCI bus in lower case."""
    match = re.fullmatch(r"[\da-f]{4}:[\da-f]{2}:[\da-f]{2}\.\d", str(value).strip().lower())
    return match[0] if match else None


def card(index: int, facts: dict) -> Card:
    """A card out of facts by field; a memory of size 0, and more in use than there is, are not believed."""
    card = Card(index, **{name: value for name, value in facts.items() if value is not None})
    if card.total == 0:
        card = replace(card, total=None, used=None)
    if card.total and card.used and card.used > 1.01 * card.total:
        card = replace(card, used=None)
    return card


def merge(first: Reading, second: Reading) -> Reading:
    """The first reading, its gaps filled from the second where both tell of the same cards."""
    if not first.cards:
        cards = second.cards
    else:
        other = {c.bus or c.index: c for c in second.cards}
        if len(first.cards) == len(second.cards) and not all(c.bus in other for c in first.cards):
            other |= {c.index: c for c in second.cards}  # no address to go by: the order
        cards = [_filled(c, other.get(c.bus) or other.get(c.index)) for c in first.cards]
    processes = second.processes if first.processes is None else first.processes
    return Reading(cards, processes, first.troubles + second.troubles)


def _filled(card: Card, other: Card | None) -> Card:
    if other is None:
        return card
    gaps = {f.name: getattr(other, f.name) for f in fields(card) if getattr(card, f.name) is None}
    return replace(card, **gaps)
