"""Rows of a data source, read and checked: what cannot be used is named with its file, its line and the reason."""

from __future__ import annotations

import csv
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

from helpers.settings import ROOT, Settings
from helpers.sources.hub import HubError, fetch

ROLES = ("system", "user", "assistant")
KINDS = (".jsonl", ".json", ".csv", ".parquet")
FORMATS = (
    "messages (a list of role and content), prompt and completion, question and answer, "
    "query and response, instruction and output, or one text column"
)
_PAIRS = (("prompt", "completion"), ("question", "answer"), ("query", "response"), ("instruction", "output"))
NAMED = 5  # different faults that one message names
SPARE = 0.05  # the share of rows of a hub data set that may be unusable: nobody can mend them there


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the row and what to do."""


@dataclass
class Found:
    """What a data source holds: (place, messages, what is asked) for each row. Rows that ask the same are alike."""

    rows: list[tuple[str, list[dict], str]]
    unusable: int = 0  # rows of a hub data set that were left out
    revision: str | None = None  # the commit that a hub data set was read at


def conversations(settings: Settings) -> Found:
    """Every row of the reader's own data or of a hub data set as messages.

    Of a hub data set, a few unusable rows are left out and said. Its rows that were made from one
    ``original_question``, as MetaMathQA's are by rewording, ask the same.

    Raises:
        DataError: for data without rows, or with rows that cannot be used: the first five different faults, each with
            the place of the first row that has it.
    """
    revision = None
    path = Path(settings.data).expanduser()
    local = path.suffix.lower() in KINDS or path.is_absolute() or path.exists()
    if local:
        rows = read_file(path if path.is_absolute() or path.is_file() else ROOT / path)
    else:
        rows, revision = _from_hub(settings)
    good, faults = [], {}
    for where, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            messages = to_messages(row, where)
            good.append((where, messages, row.get("original_question") or json.dumps(messages[:-1])))
        except DataError as fault:
            faults.setdefault(str(fault).removeprefix(where), []).append(where)
    bad = sum(map(len, faults.values()))
    if faults and not local and bad <= SPARE * len(rows):
        fault, places = next(iter(faults.items()))
        print(f"{bad} of {len(rows)} rows cannot be used and are left out, such as {places[0]}{fault}")
    elif faults:
        lines = [
            f"{places[0]}{fault}{f' (and {len(places) - 1} more rows)' if places[1:] else ''}"
            for fault, places in faults.items()
        ]
        more = f"\nand {len(lines) - NAMED} other faults" if len(lines) > NAMED else ""
        raise DataError("\n".join(lines[:NAMED]) + more)
    if not good:
        raise DataError(f"{settings.data} holds no rows")
    return Found(good, bad, revision)


def to_messages(row: dict, where: str) -> list[dict]:
    """One row of any understood format as messages.

    Args:
        row: column names and values.
        where: file and line, for the error message.

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
        _check_text(message.get("content"), f"{where}: the {message['role']} content")
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(f"{where}: a conversation must end with an assistant message to learn from")
    return [{"role": m["role"], "content": m["content"].strip()} for m in messages]


def _check_text(value: object, what: str) -> None:
    if value is None:
        raise DataError(f"{what} is null, not text")
    if not isinstance(value, str):
        raise DataError(f"{what} is {repr(value)[:60]} ({type(value).__name__}), not text")
    if not value.strip():
        raise DataError(f"{what} is blank: {value[:20]!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half a character (\\u{ord(value[error.start]):04x}), which is not text"
        ) from None


def parse_llama2(text: object, where: str) -> list[dict]:
    """``<s>[INST] question [/INST] answer </s>`` and its repetitions as messages, special tokens removed.

    Raises:
        DataError: for text without that structure, which has no question and answer to tell apart.
    """
    _check_text(text, f"{where}: the text")
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


def read_file(path: Path) -> list[tuple[str, dict | DataError]]:
    """The rows of a JSONL, JSON, CSV or Parquet file, each with its place; a row that cannot be read is its error.

    Raises:
        DataError: names the file and the fault, where nothing of it can be read.
    """
    kind = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"there is no file {path}; give the path of a {', '.join(KINDS)} file, or a hub id")
    if kind not in KINDS:
        raise DataError(f"{path}: only {', '.join(KINDS)} files are read, not {kind or 'a bare name'!r}")
    try:
        raw = path.read_bytes()
        if not raw.strip():
            raise DataError(f"{path} is empty ({len(raw)} bytes)")
        if kind == ".parquet":
            return _parquet(raw, path)
        text = raw.decode("utf-8-sig")  # with a byte order mark or without
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8") from None
    if kind == ".csv":
        return _csv(text, path)
    if kind == ".json" and text.lstrip().startswith("["):
        rows = _json(text, path)
        if isinstance(rows, DataError):
            raise rows
        return [(f"{path} row {n}", _object(row, f"{path} row {n}")) for n, row in enumerate(rows, 1)]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(f"{path}:{n}", _object(_json(line, path, n), f"{path}:{n}")) for n, line in lines]


def _json(text: str, path: Path, first: int = 1) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return DataError(f"{path}:{first + error.lineno - 1}: not JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        return DataError(f"{path}:{first}: not JSON that can be read ({error})")


def _object(row: object, where: str) -> dict | DataError:
    return row if isinstance(row, dict | DataError) else DataError(f"{where}: a row must be one JSON object")


def _csv(text: str, path: Path) -> list[tuple[str, dict | DataError]]:
    reader, rows = csv.reader(io.StringIO(text, newline=""), strict=True), []
    try:
        header = next(reader)
        while True:
            where = f"{path}:{reader.line_num + 1}"
            values = next(reader)
            if len(values) == len(header):
                rows.append((where, dict(zip(header, values, strict=True))))
            elif values:
                fault = f"{where}: {len(values)} value(s), and the first line names {len(header)} columns"
                rows.append((where, DataError(fault)))
    except StopIteration:
        return rows
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error})") from None


def _parquet(raw: bytes, path: Path) -> list[tuple[str, dict]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(pyarrow.BufferReader(raw)).to_pylist()
    except Exception as error:  # pyarrow has many of its own
        raise DataError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())[:200]})") from None
    return [(f"{path} row {number}", row) for number, row in enumerate(rows, 1)]


def _from_hub(settings: Settings) -> tuple[list[tuple[str, dict]], str | None]:
    """The rows of the split train and their commit; of a very large set, 20 times as many as the run asks for."""
    from helpers.sources.manifest import quiet  # torch and datasets are slow to import, and only needed here

    from datasets import load_dataset

    try:
        folder = fetch("dataset", settings.data, settings.data_revision)
    except HubError as error:
        raise DataError(f"{error}; or set data to a file that you have") from None
    try:
        with quiet():
            rows = load_dataset(str(folder), split="train")
    except Exception as error:  # datasets has many of its own
        raise DataError(
            f"the data set {settings.data!r} was fetched, but its split train could not be read "
            f"({' '.join(str(error).split())[:200]}): save the rows that you want as a file and give its path"
        ) from None
    wanted = 20 * (settings.train_rows + settings.validation_rows + settings.test_rows)
    chosen = range(len(rows))
    if len(rows) > wanted:
        chosen = sorted(random.Random(0).sample(chosen, wanted))
    numbered = zip(chosen, rows.select(chosen), strict=True)
    return [(f"{settings.data} row {n + 1}", row) for n, row in numbered], folder.name
