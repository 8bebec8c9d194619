"""The bundled conversations about fine-tuning, in natural prose, from one readable file: ``conversations.md``."""

from __future__ import annotations

import random
from pathlib import Path

FILE = Path(__file__).with_name("conversations.md")
UNRELATED = FILE.with_name("unrelated.md")  # short questions of general knowledge, none about computers
HELD_OUT = " (held out)"
_ROLES = {"Q: ": "user", "A: ": "assistant"}


def read_conversations(file: Path = FILE) -> list[dict]:
    """Every conversation of a file: ``topic``, ``held_out`` (True or False) and ``messages``.

    A line ``## topic`` opens a topic; one marked ``(held out)`` is never trained on. Questions are lines that begin with
    ``Q: ``, answers those with ``A: ``. A blank line ends a conversation.
    """
    found = []
    for section in file.read_text(encoding="utf-8").split("\n## ")[1:]:
        topic, *talks = section.strip().split("\n\n")
        about = {"topic": topic.removesuffix(HELD_OUT), "held_out": topic.endswith(HELD_OUT)}
        for talk in talks:
            messages = [{"role": _ROLES[line[:3]], "content": line[3:]} for line in talk.splitlines()]
            found.append(about | {"messages": messages})
    return found


def general_text() -> list[str]:
    """The paragraphs of a text on everyday things, written for this series, so that no model has read it before."""
    blocks = FILE.with_name("general_text.md").read_text(encoding="utf-8").split("\n\n")
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
