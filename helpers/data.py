"""From rows to what the model sees: read, split, tokenize once, filter, fingerprint."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field, replace

from helpers.settings import IGNORED, Settings
from helpers.sources import DataError, answer_of, make_splits
from helpers.sources.conversations import UNRELATED, general_text, read_conversations, split_conversations
from helpers.sources.files import read_rows, report_unusable
from helpers.sources.rows import answers_to_learn, to_messages
from helpers.sources.templates import DATE, RewritesEarlierTurns, tokens_and_labels

SPLITS = ("train", "validation", "test", "harder", "prose")
CONVERSATIONS = 0.28  # of the training and validation rows of "bundled"; they are twice as long as the questions


@dataclass
class Example:
    """One conversation and, once encoded, its tokens."""

    messages: list[dict]
    family: str | None = None
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  # one for each token: itself where it is supervised, else -100
    where: str = "this row"  # file and line, for an error message
    tools: list[dict] | None = None  # what the model may call in this conversation

    @property
    def prompt(self) -> list[dict]:
        """The conversation up to the last answer."""
        return self.messages[:-1]

    @property
    def asked(self) -> str:
        """Prompt and tools as one text, equal where two examples ask the same."""
        prompt = [{key: value for key, value in turn.items() if key != "weight"} for turn in self.prompt]
        return json.dumps([prompt, self.tools], default=str)

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
    prose: list[Example]  # held-out conversations of "bundled" data, on topics that training never saw
    counts: dict[str, int]
    revision: str | None = None  # of a hub data set: the commit that was read
    date: str | None = None  # that the chat template writes, if it writes one

    @property
    def rows(self) -> list[Example]:
        """The rows of all splits."""
        return [row for name in SPLITS for row in getattr(self, name)]

    @property
    def scored(self) -> bool:
        """Whether the test answers hold a final number, so that a reply can be right or wrong."""
        return all(answer_of(e.reference) is not None for e in self.test)

    def summary(self) -> dict:
        """What a record keeps: source, counts, tokens and one fingerprint for each split."""
        splits = {name: getattr(self, name) for name in SPLITS}
        return {
            "source": self.source,
            "revision": self.revision,
            "date": self.date,
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
    """The five splits as conversations, not yet encoded, what was counted on the way, and a hub data set's commit.

    Your own data is shuffled and split in the same way for every seed, so that all runs are tested on the same rows. The
    test and validation parts get the rows that the settings ask for, but never more than a fifth of the data each.

    Raises:
        DataError: for data that is empty or has too many rows that cannot be used.
    """
    if splits := _bundled(settings):
        return splits, {"read": sum(map(len, splits.values())), "unusable": 0, "repeated": 0, "unused": 0}, None
    rows, revision = read_rows(settings)
    different: dict[str, Example] = {}  # the same question twice would let the test set leak
    unusable: list[DataError] = []
    for where, row in rows:
        try:
            messages, tools = to_messages(row)
            example = Example(messages, where=where, tools=tools)
            different.setdefault(str(row.get("original_question") or example.asked), example)  # MetaMathQA rewords them
        except DataError as fault:
            unusable.append(fault.at(where))
        except RecursionError:
            unusable.append(DataError("the row is nested too deeply", where=where))
    report_unusable(unusable, len(rows), ": save the rows as a file, mend that and give its path" if revision else "")
    if len(different) < 5:
        raise DataError(f"{settings.data}: {len(different)} different questions; at least 5 are needed to split")
    examples = list(different.values())
    random.Random(0).shuffle(examples)
    fifth = len(examples) // 5
    test, validation = min(settings.test_rows, fifth), min(settings.validation_rows, fifth)
    rest = examples[test + validation :]
    repeated, unused = len(rows) - len(unusable) - len(examples), max(len(rest) - settings.train_rows, 0)
    counts = {"read": len(rows), "unusable": len(unusable), "repeated": repeated, "unused": unused}
    splits = {"train": rest[: settings.train_rows], "validation": examples[test : test + validation]}
    return splits | {"test": examples[:test], "harder": [], "prose": []}, counts, revision


def _bundled(settings: Settings) -> dict[str, list[Example]] | None:
    """The splits of ``conversations``, or of ``bundled``: those mixed with the scored questions; None for other data."""
    train, validation, test = settings.train_rows, settings.validation_rows, settings.test_rows
    if settings.data == "conversations":
        made = split_conversations(train, validation, test) | {"harder": [], "prose": []}
    elif settings.data == "bundled":  # validation is as mixed as training; the test holds questions alone
        talks = split_conversations(round(CONVERSATIONS * train), round(CONVERSATIONS * validation), test)
        sizes = train - len(talks["train"]), validation - len(talks["validation"]), test, settings.harder_rows
        made = make_splits(*sizes) | {"prose": talks["test"]}
        for name in ("train", "validation"):
            made[name] += talks[name]
    else:
        return None
    return {name: [_example(row) for row in rows] for name, rows in made.items()}


def _example(row: dict) -> Example:
    if "messages" in row:
        return Example(row["messages"], row["topic"])
    question, answer = {"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}
    return Example([question, answer], row["family"])


def unrelated(tokenizer) -> dict[str, list[Example]]:
    """To see what a model forgets: the paragraphs of a ``general`` text, all supervised, and ``unrelated`` questions."""
    texts = [tokenizer(text)["input_ids"] for text in general_text()]
    asked = [encode(_example(row), tokenizer) for row in read_conversations(UNRELATED)]
    return {"general": [Example([], input_ids=ids, labels=ids) for ids in texts], "unrelated": asked}


def encode(example: Example, tokenizer) -> Example:
    """Fill in ``input_ids`` and ``labels``: every answer is supervised, up to and with the token that ends its turn.

    What an answer adds to the rendered chat is what the model has to produce, tool calls and reasoning included. Not
    supervised are answers of weight 0 and those before the first question.

    Raises:
        DataError: with the place, for what :func:`helpers.sources.templates.tokens_and_labels` refuses.
    """
    try:
        example.input_ids, example.labels = tokens_and_labels(tokenizer, example.messages, example.tools)
    except DataError as fault:
        raise fault.at(example.where) from None
    return example


def encode_answers(example: Example, tokenizer) -> list[Example]:
    """The example encoded, or one for each of its answers where the chat template rewrites earlier turns."""
    try:
        return [encode(example, tokenizer)]
    except RewritesEarlierTurns:
        learned, messages = answers_to_learn(example.messages), example.messages
        read_only = [m | {"weight": 0} if m["role"] == "assistant" else m for m in messages]
        return [encode(replace(example, messages=[*read_only[:n], messages[n]]), tokenizer) for n in learned]


def prepare(settings: Settings, tokenizer, max_lost: float = 0.05) -> Data:
    """Read, encode and filter a data source.

    Unusable rows are skipped and reported. A row longer than ``max_length`` is dropped whole: cut, it would lose its end.

    Args:
        max_lost: the share of all rows that may be too long before this becomes an error.

    Raises:
        DataError: for too many rows that are unusable or too long.
    """
    splits, counts, revision = read(settings)
    encoded: dict[str, list[Example]] = {name: [] for name in splits}
    unusable: list[DataError] = []
    for name, example in ((name, example) for name, examples in splits.items() for example in examples):
        try:
            encoded[name] += encode_answers(example, tokenizer)
        except DataError as fault:
            unusable.append(fault)
    report_unusable(unusable, sum(map(len, splits.values())))
    counts["unusable"] += len(unusable)
    held_out = {e.asked for name, rows in encoded.items() for e in rows if name != "train"}
    new = [e for e in encoded["train"] if e.asked not in held_out]  # another answer of its conversation may be held out
    counts["repeated"] += len(encoded["train"]) - len(new)
    if counts["repeated"]:
        print(f"{counts['repeated']} of {counts['read']} rows repeat a question and are left out")
    encoded["train"] = new
    _drop_too_long(encoded, counts, settings.max_length, max_lost)
    if not encoded["train"] or not encoded["test"]:
        raise DataError(f"{settings.data}: no rows left to train and test on")
    date = DATE.isoformat() if "strftime_now" in str(tokenizer.chat_template) else None
    data = Data(source=settings.data, counts=counts, revision=revision, date=date, **encoded)
    final = sum(answer_of(e.reference) is not None for e in data.test)
    if 0 < final < len(data.test):
        print(f"{final} of {len(data.test)} test answers hold a final answer; replies are scored only if all do")
    return data


def _drop_too_long(encoded: dict[str, list[Example]], counts: dict[str, int], max_length: int, max_lost: float) -> None:
    lengths = [len(e.input_ids) for rows in encoded.values() for e in rows]
    counts["dropped_too_long"] = dropped = sum(length > max_length for length in lengths)
    if dropped > max_lost * len(lengths):
        raise DataError(
            f"{dropped} of {len(lengths)} rows are longer than max_length = {max_length} tokens (the longest has "
            f"{max(lengths)}); raise max_length (settings_for(..., max_length=...)) or shorten the rows"
        )
    for name, rows in encoded.items():
        encoded[name] = [e for e in rows if len(e.input_ids) <= max_length]
    if dropped:
        print(f"{dropped} of {len(lengths)} rows are longer than {max_length} tokens and are left out")
