"""The bundled conversations about fine-tuning, in natural prose, from one readable file: ``conversations.md``.

A line ``## topic`` opens a topic; one marked ``(held out)`` is never trained on. A blank line ends a conversation; each
question is a line that begins with ``Q: ``, each answer one that begins with ``A: ``.
"""

from __future__ import annotations

import random
from pathlib import Path

FILE = Path(__file__).with_name("conversations.md")
UNRELATED, GENERAL = FILE.with_name("unrelated.md"), FILE.with_name("general_text.md")
HELD_OUT = " (held out)"
_ROLES = {"Q": "user", "A": "assistant"}


def read_conversations(file: Path = FILE) -> list[dict]:
    """Every conversation of a file: ``topic``, ``held_out`` (True or False) and ``messages``.

    Raises:
        ValueError: names the line that is neither a topic, a question nor an answer, or breaks their order.
    """
    conversations, messages, topic = [], [], ""
    for number, line in enumerate([*file.read_text(encoding="utf-8").splitlines(), ""], 1):
        mark, colon, text = line.partition(": ")
        if line.startswith("## "):
            topic = line[3:]
        elif mark in _ROLES and colon and _ROLES[mark] == ("user", "assistant")[len(messages) % 2]:
            messages.append({"role": _ROLES[mark], "content": text})
        elif line.strip() and not line.startswith("# "):
            raise ValueError(f"{file.name}:{number}: expected a line 'Q: ...' or 'A: ...' in turn, or '## topic'")
        elif messages and not line.strip():
            held_out = topic.endswith(HELD_OUT)
            conversations.append({"topic": topic.removesuffix(HELD_OUT), "held_out": held_out, "messages": messages})
            messages = []
    return conversations


def unrelated_questions() -> list[dict]:
    """Short questions of general knowledge with answers, none of them about computers, as :func:`read_conversations` has them."""
    return read_conversations(UNRELATED)


def general_text() -> list[str]:
    """The paragraphs of a text on everyday things, written for this series, so that no model has read it before."""
    blocks = GENERAL.read_text(encoding="utf-8").split("\n\n")
    return [" ".join(block.split()) for block in blocks if not block.startswith("#")]


def split_conversations(train: int, validation: int, test: int, seed: int = 0) -> dict[str, list[dict]]:
    """Conversations for each split, at most as many as asked for; ``test`` holds topics that the others never touch.

    The validation part never takes more than a fifth of what training could use.
    """
    rng, every = random.Random(seed), read_conversations()
    trained, held_out = ([c for c in every if c["held_out"] is flag] for flag in (False, True))
    trained, held_out = rng.sample(trained, len(trained)), rng.sample(held_out, len(held_out))
    validation = min(validation, len(trained) // 5)
    return {"train": trained[validation:][:train], "validation": trained[:validation], "test": held_out[:test]}
