"""From a data source to what the model sees: read, check, turn into messages, split, tokenize, fingerprint.

Tokenization happens here and once, so the tokens shown in a notebook are the tokens trained on.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from helpers.questions import answer_of, make_splits
from helpers.settings import ROOT, Settings

ROLES = ("system", "user", "assistant")
IGNORED = -100  # a label that takes no part in the loss
FORMATS = (
    "messages (a list of role and content), prompt and completion, question and answer, "
    "query and response, or one text column"
)
_PAIRS = (("prompt", "completion"), ("question", "answer"), ("query", "response"), ("instruction", "output"))


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the row and what to do."""


@dataclass
class Example:
    """One conversation and, once encoded, its tokens.

    ``labels`` has the length of ``input_ids`` and holds the token itself where it is supervised, else -100.
    """

    messages: list[dict]
    family: str | None = None
    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

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

    @property
    def scored(self) -> bool:
        """Whether the test answers hold a final number, so that a reply can be right or wrong."""
        return all(answer_of(e.reference) is not None for e in self.test)

    def summary(self) -> dict:
        """What a record keeps: source, counts, tokens and one fingerprint for each split."""
        splits = {name: getattr(self, name) for name in ("train", "validation", "test", "harder")}
        return {
            "source": self.source,
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


def to_messages(row: dict, where: str) -> list[dict]:
    """One row of any understood format as messages.

    Args:
        row: column names and values.
        where: file and row, for the error message.

    Raises:
        DataError: for unknown columns, roles, or blank and non-text contents.
    """
    if row.get("messages") is not None:
        messages = row["messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise DataError(f"{where}: messages must be a list of objects with role and content")
    elif pair := next((p for p in _PAIRS if set(p) <= row.keys()), None):
        messages = [{"role": "user", "content": row[pair[0]]}, {"role": "assistant", "content": row[pair[1]]}]
        if row.get("system") is not None:
            messages.insert(0, {"role": "system", "content": row["system"]})
    elif "text" in row:
        messages = parse_llama2(row["text"], where)
    else:
        raise DataError(f"{where}: found the columns {', '.join(map(str, row)) or 'none'}; understood are {FORMATS}")
    for message in messages:
        if message.get("role") not in ROLES:
            raise DataError(f"{where}: unknown role {message.get('role')!r}; allowed are {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise DataError(f"{where}: the {message['role']} content is {message.get('content')!r}, not text")
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(f"{where}: a conversation must end with an assistant message to learn from")
    return [{"role": m["role"], "content": m["content"].strip()} for m in messages]


def parse_llama2(text: object, where: str) -> list[dict]:
    """``<s>[INST] question [/INST] answer </s>`` and its repetitions as messages, special tokens removed.

    Raises:
        DataError: for text without that structure, which has no question and answer to tell apart.
    """
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: the text is {text!r}, not text")
    messages: list[dict] = []
    for turn in text.replace("<s>", "").split("</s>"):
        if not turn.strip():
            continue
        head, found, answer = turn.partition("[/INST]")
        question = head.strip().removeprefix("[INST]").strip()
        if not found:
            raise DataError(f"{where}: this text has no [INST] question [/INST] answer; understood are {FORMATS}")
        if question.startswith("<<SYS>>"):
            system, _, question = question.removeprefix("<<SYS>>").partition("<</SYS>>")
            if system.strip() and not messages:
                messages.append({"role": "system", "content": system.strip()})
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer.strip()}]
    return messages


def read_file(path: Path) -> list[tuple[str, dict]]:
    """The rows of a JSONL, CSV or Parquet file, each with its place for error messages.

    Raises:
        DataError: names the file, the line and the fault.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; give the path of a JSONL, CSV or Parquet file, or a hub id")
    kind = path.suffix.lower()
    try:
        if kind in (".jsonl", ".json"):
            rows = []
            for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}:{number}: not JSON ({error.msg}, column {error.colno})") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: each line must be one JSON object")
                rows.append((f"{path}:{number}", row))
            return rows
        import pandas

        if kind == ".csv":
            frame = pandas.read_csv(path, encoding="utf-8-sig", keep_default_na=False, dtype=str)
            first = 2  # the line after the header
        elif kind == ".parquet":
            frame, first = pandas.read_parquet(path), 1
        else:
            raise DataError(f"{path}: only .jsonl, .csv and .parquet files are read, not {kind or 'a bare name'!r}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except DataError:
        raise
    except Exception as error:  # pandas and pyarrow have many of their own
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    rows = json.loads(frame.to_json(orient="records"))
    return [(f"{path}:{number}", row) for number, row in enumerate(rows, first)]


def _from_hub(settings: Settings) -> list[tuple[str, dict]]:
    from datasets import load_dataset  # slow to import, and only needed here

    try:
        rows = load_dataset(settings.data, split="train", revision=settings.data_revision)
    except Exception as error:
        raise DataError(
            f"the data set {settings.data!r} could not be loaded from the hub ({' '.join(str(error).split())[:200]}); "
            "check the name and the network, or give a local file"
        ) from None
    return [(f"{settings.data} row {n}", row) for n, row in enumerate(rows)]


def read(settings: Settings) -> dict[str, list[Example]]:
    """The four splits as conversations, not yet encoded.

    A reader's own data is shuffled with the seed and split: the test and validation parts get the rows that the
    settings ask for, but never more than a fifth of the data each.

    Raises:
        DataError: for data that is empty or has a row that cannot be used.
    """
    if settings.data == "bundled":
        splits = make_splits(
            settings.train_rows, settings.validation_rows, settings.test_rows, settings.harder_rows, seed=0
        )
        return {
            name: [Example(to_messages(row, f"bundled {name} row {n}"), row["family"]) for n, row in enumerate(rows)]
            for name, rows in splits.items()
        }
    path = Path(settings.data).expanduser()
    local = path.suffix.lower() in (".jsonl", ".json", ".csv", ".parquet") or path.is_absolute()
    found = read_file(path if path.is_absolute() or path.is_file() else ROOT / path) if local else _from_hub(settings)
    examples, seen = [], set()
    for where, row in found:
        example = Example(to_messages(row, where))
        key = json.dumps(example.prompt)
        if key not in seen:  # the same question twice would let the test set leak
            seen.add(key)
            examples.append(example)
    if len(examples) < 5:
        raise DataError(f"{settings.data}: {len(examples)} different questions; at least 5 are needed to split")
    random.Random(0).shuffle(examples)
    part = len(examples) // 5
    test, validation = min(settings.test_rows, part), min(settings.validation_rows, part)
    rest = examples[test + validation :]
    return {
        "test": examples[:test],
        "validation": examples[test : test + validation],
        "harder": [],
        "train": rest[: settings.train_rows],
    }


def encode(example: Example, tokenizer) -> Example:
    """Fill in ``input_ids`` and ``labels``: every assistant turn is supervised, up to and with its end token.

    The chat template is rendered with and without each assistant turn; what the turn adds is what the model has to
    produce. The template writes the special tokens, so the text is never tokenized with them a second time.

    Raises:
        DataError: if the template is not a prefix code (it rewrites earlier turns), or no turn ends in EOS.
    """

    def render(messages: list[dict], answer_next: bool) -> list[int]:
        return tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=answer_next, return_dict=True
        )["input_ids"]

    ids = render(example.messages, False)
    labels = [IGNORED] * len(ids)
    for turn, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        start = len(render(example.messages[:turn], True))
        stop = len(render(example.messages[: turn + 1], False))
        if render(example.messages[: turn + 1], False) != ids[:stop]:
            raise DataError("the chat template rewrites earlier turns; give rows of one question and one answer")
        ends = [i for i in range(start, stop) if ids[i] == tokenizer.eos_token_id]
        if not ends:
            raise DataError(
                f"the chat template does not end an answer with {tokenizer.eos_token!r}, so the model would never "
                "learn to stop; use a template that does"
            )
        labels[start : ends[-1] + 1] = ids[start : ends[-1] + 1]
    example.input_ids, example.labels = ids, labels
    return example


def prepare(settings: Settings, tokenizer, max_lost: float = 0.05) -> Data:
    """Read, encode and filter a data source.

    A row longer than ``max_length`` is dropped whole and counted: a cut row has lost its end token.

    Args:
        max_lost: the share of training rows that may be dropped before this becomes an error.

    Raises:
        DataError: for unusable rows, or too many that are too long.
    """
    splits = read(settings)
    counts = {"read": sum(map(len, splits.values())), "dropped_too_long": 0}
    for name, examples in sorted(splits.items(), key=lambda item: item[0] != "train"):
        encoded = [encode(e, tokenizer) for e in examples]
        kept = [e for e in encoded if len(e.input_ids) <= settings.max_length]
        lost = len(encoded) - len(kept)
        if encoded and lost > max_lost * len(encoded):
            longest = max(len(e.input_ids) for e in encoded)
            raise DataError(
                f"{lost} of {len(encoded)} {name} rows are longer than max_length = {settings.max_length} tokens "
                f"(the longest has {longest}); raise max_length (settings_for(..., max_length=...)) or shorten the rows"
            )
        counts["dropped_too_long"] += lost
        splits[name] = kept
    if not splits["train"] or not splits["test"]:
        raise DataError(f"{settings.data}: no rows left to train and test on")
    return Data(source=settings.data, counts=counts, **splits)
