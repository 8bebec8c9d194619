"""A file or row that cannot be used gives one sentence with its place, or is skipped and reported; never a bare error."""

import gzip
import json

from helpers.data import prepare
from helpers.settings import IGNORED, settings_for
from helpers.sources import DataError
from helpers.sources.files import read_file

import pandas
import pytest
from hypothesis import given, settings, strategies

ROWS = [{"question": f"How many bytes are {n} x 2?", "answer": f"The answer is: {2 * n}"} for n in range(40)]
LINES = [json.dumps(row) for row in ROWS]


def reason(path, tokenizer, **changes) -> str:
    """What you read when you train on this file."""
    with pytest.raises(DataError) as error:
        prepare(settings_for("tiny", data=str(path), **changes), tokenizer)
    return str(error.value)


LATIN = '{"question": "é", "answer": "b"}'.encode("latin-1")
MALFORMED = {
    "cut.jsonl": (b'{"question": "a", "answer": ', ":1: not JSON (Expecting value: column 29 (char 28))"),
    "list.jsonl": (b'["question"]', ":1: a row must be one JSON object"),
    "text.jsonl": (b"How much is it?", ":1: not JSON (Expecting value"),
    "deep.jsonl": (b"[" * 100_000, ":1: not JSON (maximum recursion depth exceeded"),
    "nested.jsonl": (b'{"tools": ' + b"[" * 900 + b"]" * 900 + b"}", ":1: "),
    "digits.jsonl": (b'{"question": ' + b"9" * 5000 + b"}", ":1: not JSON (Exceeds the limit (4300 digits)"),
    "latin.jsonl": (LINES[0].encode() + b"\n" + LATIN, ":2: not UTF-8 (byte 0xe9); save the file as UTF-8"),
    "utf16.jsonl": (LINES[0].encode("utf-16"), ":1: not UTF-8 (byte 0xff)"),
    "latin.csv": ("question,answer\né,b\n".encode("latin-1"), ":2: not UTF-8 (byte 0xe9)"),
    "quotes.csv": (b'question,answer\n"a,b\n', ":1: not CSV (unexpected end of data)"),
    "more.csv": (b"question,answer\na,b,c\n", ":2: more or fewer values than the first line names"),
    "fewer.csv": (b'question,answer\n"a\nb",c\na\n', ":4: more or fewer values than the first line names"),
    "twice.csv": (b"question,answer,answer\na,b,c\n", ":1: two columns have the name 'answer'"),
    "semicolon.csv": (b"question;answer\na;b\n", ":2: found the columns question;answer"),
    "blank.csv": (b"question,answer\n,b\n", ":2: the user content is blank: ''"),
    "cut.json": (b'[{"question": "a"},\n', ": not JSON (Expecting value: line 2 column 1"),
    "numbers.json": (b"[1, 2]", " row 1: a row must be one JSON object"),
    "dict.json": (b'{"rows": [1]}', ":1: found the columns rows"),
    "magic.parquet": (b"PAR1", " cannot be read (Could not open Parquet input"),
    "text.parquet": (b"question,answer", " cannot be read (Could not open Parquet input"),
    "rows.xlsx": (b"PK", ": only .jsonl, .json, .csv, .parquet files are read, not '.xlsx'"),
    "rows.gz": (gzip.compress(LINES[0].encode()), ": only .jsonl, .json, .csv, .parquet files are read"),
    "text.jsonl.gz": (b"no archive", " cannot be read ("),
    "cut.jsonl.gz": (gzip.compress("\n".join(LINES).encode())[:-20], " cannot be read ("),
    "text.csv.zst": (b"no archive", " cannot be read ("),
    "white.jsonl": (b" \n\n ", ": 0 different questions; at least 5 are needed to split"),
    "none.csv": (b"", ": 0 different questions; at least 5 are needed to split"),
    "list.json": (b"[]", ": 0 different questions; at least 5 are needed to split"),
    "header.csv": (b"question,answer\n", ": 0 different questions; at least 5 are needed to split"),
    "few.jsonl": ("\n".join(LINES[:4]).encode(), ": 4 different questions; at least 5 are needed to split"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_named_with_its_fault(tmp_path, tokenizer, name):
    content, words = MALFORMED[name]
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path / name}{words}" in reason(tmp_path / name, tokenizer)


def test_a_folder_or_file_that_is_not_there_is_named(tmp_path, tokenizer):
    (tmp_path / "notes.md").write_text("x")
    assert reason(tmp_path, tokenizer) == f"{tmp_path} holds no .jsonl, .json, .csv, .parquet file"
    assert f"there is no file {tmp_path / 'gone.jsonl'}; give the path" in reason(tmp_path / "gone.jsonl", tokenizer)


FAULTS = [
    ('{"question": "a%d", "answer": null}', "the assistant content is null"),
    ('{"question": %d, "answer": "b"}', "the user content is 0, not text"),
    ('{"question": "a%d", "answer": "b", "hint": "h%d"}', "the column 'hint' is not used"),
    ('{"messages": [{"role": "bot%d", "content": "a"}]}', "unknown role 'bot0'"),
    ('{"question": "a%d", "answer": "</s>"}', "a text holds '</s>', which this model reads as a command"),
    ("{%d", "not JSON (Expecting property name"),
]


@pytest.mark.parametrize(("row", "words"), FAULTS)
def test_twenty_rows_with_one_fault_are_one_fault_with_a_count(tmp_path, tokenizer, row, words):
    path, bad = tmp_path / "rows.jsonl", [row.replace("%d", str(n)) for n in range(20)]
    path.write_text("\n".join([*LINES[:20], *bad, *LINES[20:]]))
    told = reason(path, tokenizer).splitlines()
    assert told[0].startswith(f"{path}:21: {words}") and told[0].endswith("(and 19 more rows)")
    assert told[1:] == ["20 of 60 rows cannot be used; up to 5 % would be skipped"]


@pytest.mark.parametrize(("row", "words"), FAULTS)
def test_a_few_such_rows_are_skipped_and_reported(tmp_path, tokenizer, capsys, row, words):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*LINES[:20], row.replace("%d", "0"), row.replace("%d", "1"), *LINES[20:]]))
    data = prepare(settings_for("tiny", data=str(path)), tokenizer)
    assert data.counts == {"read": 42, "unusable": 2, "repeated": 0, "unused": 0, "dropped_too_long": 0}
    assert len(data.train + data.validation + data.test) == 40
    first, second = capsys.readouterr().out.splitlines()
    assert first == "2 of 42 rows cannot be used and are skipped:"
    assert second.startswith(f"{path}:21: {words}") and second.endswith("(and 1 more rows)")


def test_every_kind_of_fault_is_named_and_at_most_five(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([LINES[0], *[row.replace("%d", "0") for row, _ in FAULTS[:4]], "{", "[]", "[]", "1"]))
    told = reason(path, tokenizer).splitlines()
    assert [line.split(": ")[0] for line in told[:5]] == [f"{path}:{n}" for n in (2, 3, 4, 5, 6)]
    assert told[5:] == ["and 1 other faults", "8 of 9 rows cannot be used; up to 5 % would be skipped"]


def test_csv_cells_may_have_any_length(tmp_path, tokenizer):
    path = tmp_path / "rows.csv"
    pandas.DataFrame([*ROWS, {"question": "word " * 60_000, "answer": "The answer is: 1"}]).to_csv(path, index=False)
    assert len(read_file(path)[-1][1]["question"]) == 300_000
    assert prepare(settings_for("tiny", data=str(path)), tokenizer).counts["dropped_too_long"] <= 1


def test_a_byte_order_mark_carriage_returns_and_mixed_forms_are_read(tmp_path, tokenizer):
    mixed = [json.dumps({"text": f"<s>[INST] {r['question']} [/INST] {r['answer']} </s>"}) for r in ROWS[20:]]
    lines = LINES[:20] + mixed
    frame = pandas.DataFrame(ROWS).to_csv()
    for name, text in {"r.jsonl": "\r\n".join(lines), "r.json": f"[{','.join(lines)}]", "r.csv": frame}.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert prepare(settings_for("tiny", data=str(tmp_path / name)), tokenizer).counts["read"] == 40
    separator = json.dumps({"question": "a\u2028b", "answer": "c"}, ensure_ascii=False)
    (tmp_path / "separator.jsonl").write_text("\n".join([*LINES[:6], separator]))
    assert len(read_file(tmp_path / "separator.jsonl")) == 7  # a line separator inside a string is no new line


SEEDS = {
    "jsonl": "\n".join(LINES[:20]).encode(),
    "csv": pandas.DataFrame(ROWS[:20]).to_csv(index=False).encode(),
    "json": json.dumps(
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    ).encode(),
}
PIECES = [
    b"null",
    b"\\ud800",
    b"</s>",
    b'"',
    b"\n",
    b"{}",
    b"1e999",
    b"\x00",
    b"\xff\xfe",
    b"[[[[",
    b'"weight": 0,',
    b"system",
]


@strategies.composite
def mutated(draw):
    """A data file with some of its bytes replaced, removed, doubled or put in."""
    kind = draw(strategies.sampled_from(sorted(SEEDS)))
    raw = bytearray(SEEDS[kind])
    for _ in range(draw(strategies.integers(1, 6))):
        at, length = draw(strategies.integers(0, max(len(raw) - 1, 0))), draw(strategies.integers(0, 40))
        doubled = strategies.just(bytes(raw[at : at + length]))
        new = draw(strategies.one_of(strategies.binary(max_size=8), doubled, strategies.sampled_from(PIECES)))
        raw[at : at + draw(strategies.sampled_from([0, length]))] = new
    return kind, bytes(raw)


def check_answer(case, folder, tokenizer) -> None:
    """A mutated file gives training rows or a message that begins with the file, and nothing else."""
    kind, raw = case
    path = folder / f"mutated.{kind}"
    path.write_bytes(raw)
    try:
        data = prepare(settings_for("tiny", data=str(path)), tokenizer, max_lost=1.0)
    except DataError as error:
        assert str(error).startswith(str(path)) and len(str(error)) < 3000
    else:
        assert all(tokenizer.eos_token_id in e.labels and IGNORED in e.labels for e in data.train)


@settings(max_examples=200, derandomize=True, database=None, deadline=None)  # ten times as many: tests/campaign
@given(case=mutated())
def test_mutated_files_give_rows_or_a_sentence(case, tmp_path_factory, tokenizer):
    check_answer(case, tmp_path_factory.getbasetemp(), tokenizer)
