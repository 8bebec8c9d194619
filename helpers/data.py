"""From rows to what the model sees: split, tokenize, filter, order, fingerprint.

Tokenization happens here and once, so the tokens shown in a notebook are the tokens trained on.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field

from helpers.settings import Settings
from helpers.sources.files import DataError, conversations, to_messages
from helpers.sources.questions import answer_of, make_splits

from jinja2 import TemplateError

IGNORED = -100  # a label that takes no part in the loss


@dataclass
class Example:
    """One conversation and, once encoded, its tokens.

    ``labels`` has the length of ``input_ids`` and holds the token itself where it is supervised, else -100.
    """

    messages: list[dict]
    family: str | None = None
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    where: str = "this row"  # file and line, for an error message

    @property
    def prompt(self) -> list[dict]:
        """The conversation up to the last answer."""
        return self.messages[:-1]

    @property
    def reference(self) -> str:
        """The last answer, which a model is asked to give."""
        return self.messages[-1]["content"]


@dataclass
class Data:
    """The splits of a data source, encoded, with what was counted on the way."""

    source: str
    train: list[Example]
    validation: list[Example]
    test: list[Example]
    harder: list[Example]
    counts: dict[str, int]
    revision: str | None = None  # of a hub data set: the commit that was read

    @property
    def scored(self) -> bool:
        """Whether the test answers hold a final number, so that a reply can be right or wrong."""
        return all(answer_of(e.reference) is not None for e in self.test)

    def summary(self) -> dict:
        """What a record keeps: source, counts, tokens and one fingerprint for each split."""
        splits = {name: getattr(self, name) for name in ("train", "validation", "test", "harder")}
        return {
            "source": self.source,
            "revision": self.revision,
            "rows": {name: len(rows) for name, rows in splits.items()},
            "counts": self.counts,
            "train_tokens": sum(len(e.input_ids) for e in self.train),
            "train_supervised_tokens": sum(label != IGNORED for e in self.train for label in e.labels),
            "fingerprints": {name: fingerprint(rows) for name, rows in splits.items()},
        }


def fingerprint(examples: list[Example]) -> str:
    """Sixteen hexadecimal digits of the sha256 over the token ids and labels, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.input_ids, example.labels]).encode())
    return digest.hexdigest()[:16]


def read(settings: Settings) -> tuple[dict[str, list[Example]], dict[str, int], str | None]:
    """The four splits as conversations, not yet encoded, what was counted on the way, and a hub data set's commit.

    A reader's own data is shuffled with the seed and split: the test and validation parts get the rows that the
    settings ask for, but never more than a fifth of the data each.

    Raises:
        DataError: for data that is empty or has a row that cannot be used.
    """
    if settings.data == "bundled":
        splits = make_splits(
            settings.train_rows, settings.validation_rows, settings.test_rows, settings.harder_rows, seed=0
        )
        made = {
            name: [Example(to_messages(row, f"bundled {name} row {n}"), row["family"]) for n, row in enumerate(rows)]
            for name, rows in splits.items()
        }
        return made, {"read": sum(map(len, made.values())), "unusable": 0, "repeated": 0, "unused": 0}, None
    found, examples, seen = conversations(settings), [], set()
    for where, messages, asked in found.rows:
        if asked not in seen:  # the same question twice would let the test set leak
            seen.add(asked)
            examples.append(Example(messages, where=where))
    if len(examples) < 5:
        raise DataError(f"{settings.data}: {len(examples)} different questions; at least 5 are needed to split")
    random.Random(0).shuffle(examples)
    part = len(examples) // 5
    test, validation = min(settings.test_rows, part), min(settings.validation_rows, part)
    rest = examples[test + validation :]
    counts = {
        "read": len(found.rows) + found.unusable, "unusable": found.unusable, "repeated": len(found.rows) - len(examples),
        "unused": max(len(rest) - settings.train_rows, 0),
    }  # fmt: skip
    splits = {
        "test": examples[:test],
        "validation": examples[test : test + validation],
        "harder": [],
        "train": rest[: settings.train_rows],
    }
    return splits, counts, found.revision


def encode(example: Example, tokenizer) -> Example:
    """Fill in ``input_ids`` and ``labels``: every assistant turn is supervised, up to and with its end token.

    The chat template is rendered with and without each assistant turn; what the turn adds is what the model has to
    produce. The template writes the special tokens, so the text is never tokenized with them a second time.

    Raises:
        DataError: if a message holds a special token, the template does not take the roles in this order or rewrites
            earlier turns, or no turn ends in EOS.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for message in example.messages:
        if token := next((token for token in special if token in message["content"]), None):
            raise DataError(
                f"{example.where}: the {message['role']} content holds {token!r}, which this model reads as a command and "
                "not as text; take it out, or give the row as one text in Llama 2's form, which is taken apart"
            )

    def render(messages: list[dict], answer_next: bool) -> list[int]:
        try:
            return tokenizer.apply_chat_template(
                messages, tokenize=True, add_generation_prompt=answer_next, return_dict=True
            )["input_ids"]
        except TemplateError as error:
            raise DataError(f"{example.where}: the chat template of this model refuses it: {error}") from None

    ids = render(example.messages, False)
    labels = [IGNORED] * len(ids)
    for turn, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        start = len(render(example.messages[:turn], True))
        stop = len(render(example.messages[: turn + 1], False))
        if render(example.messages[: turn + 1], False) != ids[:stop]:
            raise DataError(
                f"{example.where}: the chat template rewrites earlier turns; give rows of one question and one answer"
            )
        ends = [i for i in range(start, stop) if ids[i] == tokenizer.eos_token_id]
        if not ends:
            raise DataError(
                f"{example.where}: the chat template does not end an answer with {tokenizer.eos_token!r}, so the model would never "
                "learn to stop; use a template that does"
            )
        labels[start : ends[-1] + 1] = ids[start : ends[-1] + 1]
    example.input_ids, example.labels = ids, labels
    return example


def prepare(settings: Settings, tokenizer, max_lost: float = 0.05) -> Data:
    """Read, encode and filter a data source.

    A row longer than ``max_length`` is dropped whole, counted and said: a cut row has lost its end token.

    Args:
        max_lost: the share of all rows that may be dropped before this becomes an error.

    Raises:
        DataError: for unusable rows, or too many that are too long.
    """
    splits, counts, revision = read(settings)
    encoded = {name: [encode(e, tokenizer) for e in examples] for name, examples in splits.items()}
    lengths = [len(e.input_ids) for examples in encoded.values() for e in examples]
    counts["dropped_too_long"] = sum(length > settings.max_length for length in lengths)
    if counts["dropped_too_long"] > max_lost * len(lengths):
        raise DataError(
            f"{counts['dropped_too_long']} of {len(lengths)} rows are longer than max_length = {settings.max_length} tokens "
            f"(the longest has {max(lengths)}); raise max_length (settings_for(..., max_length=...)) or shorten the rows"
        )
    splits = {name: [e for e in rows if len(e.input_ids) <= settings.max_length] for name, rows in encoded.items()}
    for name, reason in (
        ("repeated", "repeat a question"),
        ("dropped_too_long", f"are longer than {settings.max_length} tokens"),
    ):
        if counts[name]:
            print(f"{counts[name]} of {counts['read']} rows {reason} and are left out")
    if not splits["train"] or not splits["test"]:
        raise DataError(f"{settings.data}: no rows left to train and test on")
    return Data(source=settings.data, counts=counts, revision=revision, **splits)
