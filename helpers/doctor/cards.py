"""What is known about a GPU, and how the values of tools and of the kernel are read. Never imports torch.

A value that is missing, "N/A" or impossible (16 EB in use) is None, never 0.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

KNOWN = tomllib.loads(Path(__file__).with_name("cards.toml").read_text(encoding="utf-8"))
_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}  # the tools write MB and mean MiB
_MOST = 2**50  # bytes: anything larger is a counter that ran below zero


class Process(NamedTuple):
    """A process that holds GPU memory, in bytes; ``gpu`` is the index of the card."""

    pid: int
    name: str | None
    memory: int
    gpu: int


@dataclass(frozen=True)
class Card:
    """One GPU. Memory in bytes, ``temperature`` in degrees Celsius, ``power`` in watts; unknown is None."""

    index: int
    name: str | None = None
    gfx: str | None = None
    total: int | None = None
    used: int | None = None
    gtt_total: int | None = None  # main memory that the GPU may use
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
    processes: list[Process] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)


def number(value, unit: str | None = None) -> float | None:
    """A number out of 45, "45.0", "45 W" or {"value": 45, "unit": "W"}, sizes in bytes; ``unit`` is for one without."""
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


def between(least: float, most: float, *values) -> float | None:
    """The first value that is a number in this range, such as a temperature that is possible."""
    return next((n for n in map(number, values) if n is not None and least <= n < most), None)


def architecture(text) -> str | None:
    """``gfx90a`` out of the forms of tools, torch and kernel: "gfx90a:sramecc+", "gfx9010" (step in decimal), 90010."""
    if isinstance(text, int):  # as the kernel numbers it: major * 10000 + minor * 100 + step
        return f"gfx{text // 10000}{text // 100 % 100}{text % 100:x}" if text else None
    match = re.match(r"gfx(?:(90)(1[0-5])\b|\w+)", str(text or "").strip())
    return match and (f"gfx90{int(match[2]):x}" if match[1] else match[0])


def words(*values) -> str | None:
    """The first value that is a name; None for what is empty, "N/A" or a bare hexadecimal number."""
    texts = (str(value).strip().lstrip(". ") for value in values if isinstance(value, str))
    return next((text for text in texts if not re.fullmatch(r"(?i)|n/a|none|unknown|0x[\da-f]+", text)), None)


def driver(*values) -> str | None:
    """The first version; a driver inside the kernel gives a banner instead, from which the kernel's version is taken."""
    version = words(*values)
    in_kernel = re.match(r"Linuxversion([\d.]+(?:-\d+)?)", version or "")
    return f"of Linux {in_kernel[1]}" if in_kernel else version


def address(value) -> str | None:
    """An address on the PCI bus in lower case."""
    match = re.fullmatch(r"[\da-f]{4}:[\da-f]{2}:[\da-f]{2}\.\d", str(value).strip().lower())
    return match and match[0]


def card(index: int, facts: dict) -> Card:
    """A card out of facts by field; a memory of size 0, and more in use than there is, are not believed."""
    total, used = facts.get("total"), facts.get("used")
    impossible = total == 0 or (total and used and used > 1.01 * total)
    return Card(index, **facts | {"total": total or None, "used": None if impossible else used})


def merge(first: Reading, second: Reading) -> Reading:
    """The first reading, its gaps filled from the second where both describe the same cards."""
    by_bus = {c.bus: c for c in second.cards if c.bus}
    same_order = len(first.cards) == len(second.cards) and not all(c.bus in by_bus for c in first.cards)
    cards = []
    for card in first.cards:
        other = by_bus.get(card.bus) or (second.cards[len(cards)] if same_order else card)
        gaps = [f.name for f in fields(card) if getattr(card, f.name) is None]
        cards.append(replace(card, **{name: getattr(other, name) for name in gaps}))
    return Reading(cards or second.cards, first.processes or second.processes, first.troubles + second.troubles)
