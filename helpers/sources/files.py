"""Rows of a data source: files of several kinds, folders of them, or a data set of the hub, each row with its place."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from pathlib import Path

from helpers.settings import ROOT, Settings
from helpers.sources.hub import HubError, fetch
from helpers.sources.rows import DataError

KINDS = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
NAMED = 5  # different faults that one message names
SHARE = 0.05  # of all rows that may be unusable before a run stops


def report_unusable(faults: list[DataError], rows: int, remedy: str = "") -> None:
    """Print which of so many rows are skipped, the first of each kind of fault; DataError for more than :data:`SHARE`."""
    if not faults:
        return
    kinds: dict[str, list[DataError]] = {}
    for fault in sorted(faults, key=lambda fault: [(len(part), part) for part in re.split(r"(\d+)", fault.where)]):
        kinds.setdefault(fault.kind, []).append(fault)
    lines = [f"{first}{f' (and {len(more)} more rows)' if more else ''}" for first, *more in kinds.values()]
    lines[NAMED:] = [f"and {len(lines) - NAMED} other faults"] if lines[NAMED:] else []
    count = f"{len(faults)} of {rows} rows cannot be used"
    if len(faults) > SHARE * rows:
        raise DataError("\n".join([*lines, f"{count}; up to {100 * SHARE:.0f} % would be skipped{remedy}"]))
    print(f"{count} and are skipped:", *lines, sep="\n")


def read_rows(settings: Settings) -> tuple[list[tuple[str, object]], str | None]:
    """The rows of your own data or of a hub data set, as :func:`read_file` has them, and the commit of the latter."""
    path = Path(settings.data).expanduser()
    path = path if path.exists() else ROOT / path
    if path.exists() or path.suffix.lower() in KINDS + COMPRESSED or Path(settings.data).is_absolute():
        return [row for file in _files(path) for row in read_file(file)], None
    return _from_hub(settings)


def _files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder; other files there are named."""
    if not path.is_dir():
        return [path]
    there = sorted(file for file in path.rglob("*") if file.is_file())
    there = [file for file in there if not any(name.startswith(".") for name in file.relative_to(path).parts)]
    files = [file for file in there if _kind(file) in KINDS]
    if others := [file.name for file in there if file not in files]:
        print(f"{path}: {len(others)} other files are not read, such as {others[0]}")
    if not files:
        raise DataError(f"{path} holds no {', '.join(KINDS)} file")
    return files


def _kind(path: Path) -> str:
    """The kind of a file by its name, .jsonl for rows.jsonl.gz."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSED else path).suffix.lower()


def read_file(path: Path) -> list[tuple[str, object]]:
    """The rows of a file, each with its place; one that cannot be read is the DataError that says why."""
    import pyarrow
    from pyarrow import parquet

    kind = _kind(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}; give the path of a {', '.join(KINDS)} file, or a hub id")
    if kind not in KINDS:
        raise DataError(f"{path}: only {', '.join(KINDS)} files are read, not {kind or 'a bare name'!r}")
    try:
        with pyarrow.input_stream(str(path), compression="detect") as stream:
            raw = stream.read()
        if kind == ".parquet":
            rows = parquet.read_table(pyarrow.BufferReader(raw)).to_pylist()
            return [(f"{path} row {n}", _without_nulls(row)) for n, row in enumerate(rows, 1)]
        text = raw.decode("utf-8-sig")  # with a byte order mark or without
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8") from None
    except Exception as error:  # pyarrow has many of its own
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())[:200]})") from None
    if kind == ".csv":
        return _csv(text, path)
    if kind == ".json" and text.lstrip().startswith("["):
        if isinstance(rows := _json(text), DataError):
            raise rows.at(str(path))
        return [(f"{path} row {n}", row) for n, row in enumerate(rows, 1)]
    return [(f"{path}:{n}", _json(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or brackets without end
        return DataError(f"not JSON ({str(error).replace('line 1 column', 'column')})", "not JSON")


def _csv(text: str, path: Path) -> list[tuple[str, object]]:
    csv.field_size_limit(2**31 - 1)
    reader, rows, line = csv.DictReader(io.StringIO(text, newline=""), strict=True), [], 2
    try:
        header = reader.fieldnames or []
        if twice := next((name for name in header if header.count(name) > 1), None):
            raise DataError(f"{path}:1: two columns have the name {twice!r}")
        for row in reader:
            if None in row or None in row.values():
                row = DataError("more or fewer values than the first line names")
            rows.append((f"{path}:{line}", row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error})") from None
    return rows


def _without_nulls(row: dict) -> dict:
    """A row of a table without the nulls of nested objects, which Arrow fills in where another row has a key."""

    def given(inner: dict) -> dict:
        return {key: value for key, value in inner.items() if value is not None}

    return {name: json.loads(json.dumps(value, default=str), object_hook=given) for name, value in row.items()}


def _from_hub(settings: Settings) -> tuple[list[tuple[str, object]], str]:
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
    chosen = range(len(rows))
    wanted = 20 * (settings.train_rows + settings.validation_rows + settings.test_rows)
    if len(rows) > wanted:
        chosen = sorted(random.Random(0).sample(chosen, wanted))
    numbered = zip(chosen, rows.select(chosen), strict=True)
    return [(f"{settings.data} row {n + 1}", _without_nulls(row)) for n, row in numbered], folder.name
