"""Rows of a data source: files of several kinds, folders of them, or a data set of the hub, each row with its place."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from helpers.settings import ROOT, Settings
from helpers.sources.hub import HubError, fetch
from helpers.sources.rows import DataError, to_messages

KINDS = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
NAMED = 5  # different faults that one message names
SHARE = 0.05  # of all rows that may be unusable before a run stops


class Skipped:
    """Rows that cannot be used: how many there are of each kind of fault, and the first of each."""

    def __init__(self):
        self.kinds: dict[str, list[DataError]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.kinds.values()))

    def add(self, fault: DataError) -> None:
        self.kinds.setdefault(fault.kind, []).append(fault)

    def report(self, rows: int, remedy: str = "") -> None:
        """Print what was skipped of so many rows.

        Args:
            remedy: what to do where it is too much, if that is more than each line says.

        Raises:
            DataError: with the same lines, if it is more than :data:`SHARE`.
        """
        if not self.kinds:
            return
        groups = [sorted(same, key=_in_file_order) for same in self.kinds.values()]
        lines = [f"{same[0]}{f' (and {len(same) - 1} more rows)' if same[1:] else ''}" for same in groups]
        listed = lines[:NAMED] + ([f"and {len(lines) - NAMED} other faults"] if lines[NAMED:] else [])
        if len(self) > SHARE * rows:
            listed.append(
                f"{len(self)} of {rows} rows cannot be used; up to {100 * SHARE:.0f} % would be skipped{remedy}"
            )
            raise DataError("\n".join(listed))
        print(f"{len(self)} of {rows} rows cannot be used and are skipped:", *listed, sep="\n")


def _in_file_order(fault: DataError) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", fault.where)]


@dataclass
class Row:
    """One usable row: its place, its messages up to the last answer, its tools, and what it asks.

    Rows that ask the same must not be divided among the splits.
    """

    where: str
    messages: list[dict]
    tools: list[dict] | None
    asked: str


def conversations(settings: Settings) -> tuple[list[Row], Skipped, str | None]:
    """Every usable row of your own data or of a hub data set, the rows skipped, and the commit of a hub data set.

    Rows made from one ``original_question``, as MetaMathQA's are by rewording, ask the same.

    Raises:
        DataError: for data without rows, or with too many that cannot be used.
    """
    revision, path = None, Path(settings.data).expanduser()
    path = path if path.exists() else ROOT / path
    if path.suffix.lower() in KINDS + COMPRESSED or path.exists() or Path(settings.data).is_absolute():
        found = [row for file in _files(path) for row in read_file(file)]
    else:
        found, revision = _from_hub(settings)
    rows, skipped = [], Skipped()
    for where, row in found:
        try:
            if isinstance(row, DataError):
                raise row
            messages, tools = to_messages(row)
            asked = str(row.get("original_question") or json.dumps([messages[:-1], tools], default=str))
            rows.append(Row(where, messages, tools, asked))
        except DataError as fault:
            skipped.add(fault.at(where))
        except RecursionError:
            skipped.add(DataError("the row is nested too deeply", where=where))
    skipped.report(len(found), ": save the rows as a file, mend that and give its path" if revision else "")
    if not rows:
        raise DataError(f"{settings.data} holds no rows")
    return rows, skipped, revision


def _files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder; other files there are named."""
    if not path.is_dir():
        return [path]
    there = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    files = [file for file in there if _kind(file) in KINDS]
    if others := [file.name for file in there if file not in files]:
        print(f"{path}: {len(others)} other files are not read, such as {others[0]}")
    if not files:
        raise DataError(f"{path} holds no {', '.join(KINDS)} file")
    return files


def _kind(path: Path) -> str:
    """The kind of a file by its name, .jsonl for rows.jsonl.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[:-1][-1:] if suffixes and suffixes[-1] in COMPRESSED else suffixes[-1:])


def read_file(path: Path) -> list[tuple[str, dict | DataError]]:
    """The rows of a JSONL, JSON, CSV or Parquet file, compressed or not, each with its place or what is wrong with it.

    Raises:
        DataError: names the file and the fault, where nothing of it can be read.
    """
    import pyarrow

    kind = _kind(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}; give the path of a {', '.join(KINDS)} file, or a hub id")
    if kind not in KINDS:
        raise DataError(f"{path}: only {', '.join(KINDS)} files are read, not {kind or 'a bare name'!r}")
    try:
        with pyarrow.input_stream(str(path), compression="detect") as stream:
            raw = stream.read()
        if not raw.strip():
            raise DataError(f"{path} is empty ({len(raw)} bytes)")
        if kind == ".parquet":
            return _parquet(raw, path)
        text = raw.decode("utf-8-sig")  # with a byte order mark or without
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8") from None
    if kind == ".csv":
        return _csv(text, path)
    if kind == ".json" and text.lstrip().startswith("["):
        if isinstance(rows := _json(text, path), DataError):
            raise rows
        return [(f"{path} row {n}", _object(row)) for n, row in enumerate(rows, 1)]
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [(f"{path}:{n}", _object(_json(line, path, n))) for n, line in lines]


def _json(text: str, path: Path, first: int = 1) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        fault = f"not JSON ({error.msg}, column {error.colno})"
        return DataError(fault, "not JSON", f"{path}:{first + error.lineno - 1}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        return DataError(f"not JSON that can be read ({error})", where=f"{path}:{first}")


def _object(row: object) -> dict | DataError:
    return row if isinstance(row, dict | DataError) else DataError("a row must be one JSON object")


def _csv(text: str, path: Path) -> list[tuple[str, dict | DataError]]:
    csv.field_size_limit(2**31 - 1)
    reader, rows = csv.reader(io.StringIO(text, newline=""), strict=True), []
    try:
        header = next(reader)
        if twice := next((name for name in header if header.count(name) > 1), None):
            raise DataError(f"{path}:1: two columns have the name {twice!r}")
        while True:
            where = f"{path}:{reader.line_num + 1}"
            values = next(reader)
            if len(values) == len(header):
                rows.append((where, dict(zip(header, values, strict=True))))
            elif values:
                fault = f"{len(values)} value(s), and the first line names {len(header)} columns"
                rows.append((where, DataError(fault, "another number of columns")))
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
    return [(f"{path} row {number}", _clean(row)) for number, row in enumerate(rows, 1)]


def _clean(row: dict) -> dict:
    """A row of a table without the nulls of nested objects, which Arrow fills in where another row has a key."""

    def without_nulls(value: object) -> object:
        if isinstance(value, list):
            return [without_nulls(each) for each in value]
        if isinstance(value, dict):
            return {key: without_nulls(each) for key, each in value.items() if each is not None}
        return value

    return {name: without_nulls(value) for name, value in row.items()}


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
    return [(f"{settings.data} row {n + 1}", _clean(row)) for n, row in numbered], folder.name
