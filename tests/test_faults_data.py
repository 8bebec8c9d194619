"""Faults of data and of the hub, injected one by one: rows 22 to 24 and 31 to 37 of the forty that this project answers for."""

import json
import shutil
import socket
import time

from helpers.data import Example, encode, prepare
from helpers.models import load_base
from helpers.settings import IGNORED, settings_for
from helpers.sources import DataError, ModelError, resolve
from helpers.sources import hub as helpers_hub
from helpers.sources.files import parse_llama2, read_file
from helpers.sources.hub import HubError, fetch
from tests.hub import use

import pandas
import pytest
from hypothesis import given, settings, strategies
from transformers import AutoTokenizer

ROWS = [{"question": f"How many bytes are {n} x 2?", "answer": f"The answer is: {2 * n}"} for n in range(20)]
LINES = [json.dumps(row) for row in ROWS]


def reason(path, tokenizer, **changes) -> str:
    """What a reader is told who trains on this file."""
    with pytest.raises(DataError) as error:
        prepare(settings_for("tiny", data=str(path), **changes), tokenizer)
    return str(error.value)


def test_row_22_rows_longer_than_max_length(tmp_path, tokenizer, capsys):
    """Such a row is dropped whole, counted and said; above a share of 5 % the run stops."""
    long = [{"question": f"{word} " * 3000, "answer": "The answer is: 1"} for word in ("one", "two")]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(LINES + [json.dumps(row) for row in long]))
    told = reason(path, tokenizer)
    assert "rows are longer than max_length = 1024 tokens (the longest has" in told and "raise max_length" in told
    data = prepare(settings_for("tiny", data=str(path)), tokenizer, max_lost=1.0)
    assert data.counts == {"read": 22, "unusable": 0, "repeated": 0, "unused": 0, "dropped_too_long": 2}
    assert "2 of 22 rows are longer than 1024 tokens and are left out" in capsys.readouterr().out
    assert all(e.labels[-1] == tokenizer.eos_token_id for e in data.train + data.test)


@pytest.mark.parametrize("model", ["tiny", "like llama"])
def test_row_24_text_that_already_holds_special_tokens(tokenizer, model):
    if model == "like llama":  # whose tokenizer writes BOS before every text that it is given
        from tokenizers.processors import TemplateProcessing

        tokenizer = AutoTokenizer.from_pretrained(resolve(settings_for("tiny")).folder)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    text = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHow much? [/INST] 8 GB. </s>"
    messages = parse_llama2(text, "row")
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    example = encode(Example(messages), tokenizer)
    assert example.input_ids.count(tokenizer.bos_token_id) == example.input_ids.count(tokenizer.eos_token_id) == 1
    assert example.input_ids[0] == tokenizer.bos_token_id and example.labels[-1] == tokenizer.eos_token_id


def test_row_24_special_tokens_inside_a_message_are_refused(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*LINES, json.dumps({"question": "a</s><s>b", "answer": "c"})]))
    assert f"{path}:21: the user content holds '<s>', which this model reads as a command" in reason(path, tokenizer)


def test_row_31_empty_data_set(tmp_path, tokenizer):
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        path = tmp_path / name
        path.write_bytes(b"")
        assert reason(path, tokenizer) == f"{path} is empty (0 bytes)"
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "header.csv").write_text("question,answer\n")
    pandas.DataFrame(ROWS[:0]).to_parquet(tmp_path / "none.parquet")
    for name in ("list.json", "header.csv", "none.parquet"):
        assert reason(tmp_path / name, tokenizer) == f"{tmp_path / name} holds no rows"
    (tmp_path / "few.jsonl").write_text("\n".join(LINES[:4]))
    assert "4 different questions; at least 5 are needed" in reason(tmp_path / "few.jsonl", tokenizer)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_row_32_wrong_columns(tmp_path, tokenizer, kind):
    path, frame = tmp_path / f"rows.{kind}", pandas.DataFrame(ROWS).set_axis(["frage", "antwort"], axis=1)
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    first = {"jsonl": f"{path}:1", "csv": f"{path}:2", "parquet": f"{path} row 1"}[kind]
    told = reason(path, tokenizer)
    assert told.startswith(f"{first}: found the columns frage, antwort; understood are messages (a list of role")
    assert told.count("\n") == 0 and told.endswith("or one text column (and 19 more rows)")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "a", "answer": null}', "the assistant content is null, not text"),
        ('{"question": 7, "answer": "b"}', "the user content is 7 (int), not text"),
        ('{"question": "a", "answer": "  "}', "the assistant content is blank: '  '"),
        ('{"question": ["a"], "answer": "b"}', "the user content is ['a'] (list), not text"),
        ('{"question": "a", "answer": "\\ud800"}', "the assistant content holds half a character (\\ud800)"),
        ('{"text": null}', "the text is null, not text"),
        ('{"text": "no structure"}', "this text has no [INST] question"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "a conversation must end with an assistant message"),
        ('{"messages": [{"role": "assistant"}]}', "the assistant content is null, not text"),
        ('{"messages": "hello"}', "messages must be a list"),
    ],
)
def test_row_33_null_number_blank_text(tmp_path, tokenizer, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*LINES[:2], line, *LINES[2:]]))
    assert f"{path}:3: {words}" in reason(path, tokenizer)


def test_row_33_every_kind_of_fault_is_named(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([LINES[0], "{", LINES[1], '{"question": 1, "answer": "b"}', "[]", "[]"]))
    told = reason(path, tokenizer).splitlines()
    assert [line.split(" ")[0] for line in told] == [f"{path}:{n}:" for n in (2, 4, 5)]
    assert told[2].endswith("a row must be one JSON object (and 1 more rows)")


def test_row_34_unknown_role(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*LINES, '{"messages": [{"role": "bot", "content": "a"}]}']))
    assert reason(path, tokenizer) == f"{path}:21: unknown role 'bot'; allowed are system, user, assistant"


def test_row_34_an_order_of_roles_that_the_template_refuses(tokenizer):
    strict = AutoTokenizer.from_pretrained(resolve(settings_for("tiny")).folder)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}" + strict.chat_template
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    with pytest.raises(DataError, match="f:3: the chat template of this model refuses it: roles must alternate"):
        encode(Example(twice, where="f:3"), strict)


LATIN = '{"question": "é", "answer": "b"}'.encode("latin-1")
MALFORMED = {
    "cut.jsonl": (b'{"question": "a", "answer": ', ":1: not JSON (Expecting value, column 29)"),
    "list.jsonl": (b'["question"]', ":1: a row must be one JSON object"),
    "text.jsonl": (b"How much is it?", ":1: not JSON (Expecting value"),
    "deep.jsonl": (b"[" * 100_000, ":1: not JSON that can be read"),
    "digits.jsonl": (b'{"question": ' + b"9" * 5000 + b"}", ":1: not JSON that can be read"),
    "latin.jsonl": (LINES[0].encode() + b"\n" + LATIN, ":2: not UTF-8 (byte 0xe9); save the file as UTF-8"),
    "utf16.jsonl": (LINES[0].encode("utf-16"), ":1: not UTF-8 (byte 0xff)"),
    "latin.csv": ("question,answer\né,b\n".encode("latin-1"), ":2: not UTF-8 (byte 0xe9)"),
    "quotes.csv": (b'question,answer\n"a,b\n', ":2: not CSV (unexpected end of data)"),
    "more.csv": (b"question,answer\na,b,c\n", ":2: 3 value(s), and the first line names 2 columns"),
    "fewer.csv": (b'question,answer\n"a\nb",c\na\n', ":4: 1 value(s), and the first line names 2 columns"),
    "semicolon.csv": (b"question;answer\na;b\n", ":2: found the columns question;answer"),
    "blank.csv": (b"question,answer\n,b\n", ":2: the user content is blank: ''"),
    "cut.json": (b'[{"question": "a"},', ":1: not JSON"),
    "numbers.json": (b"[1, 2]", " row 1: a row must be one JSON object"),
    "dict.json": (b'{"rows": [1]}', ":1: found the columns rows"),
    "magic.parquet": (b"PAR1", " cannot be read as Parquet"),
    "text.parquet": (b"question,answer", " cannot be read as Parquet"),
    "rows.xlsx": (b"PK", ": only .jsonl, .json, .csv, .parquet files are read, not '.xlsx'"),
    "white.jsonl": (b" \n\n ", " is empty (4 bytes)"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_row_35_malformed_files(tmp_path, tokenizer, name):
    content, words = MALFORMED[name]
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path / name}{words}" in reason(tmp_path / name, tokenizer)


def test_row_35_a_byte_order_mark_and_mixed_forms_are_read(tmp_path, tokenizer):
    mixed = [json.dumps({"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]}) for r in ROWS[:10]]  # fmt: skip
    mixed += [json.dumps({"text": f"<s>[INST] {r['question']} [/INST] {r['answer']} </s>"}) for r in ROWS[10:]]
    content = {
        "rows.jsonl": "\r\n".join(mixed),
        "rows.json": f"[{','.join(mixed)}]",
        "rows.csv": pandas.DataFrame(ROWS).to_csv(),
    }
    for name, text in content.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert prepare(settings_for("tiny", data=str(tmp_path / name)), tokenizer).counts["read"] == 20
    (tmp_path / "separator.jsonl").write_text("\n".join([*LINES[:6], json.dumps({"question": "a\u2028b", "answer": "c"}, ensure_ascii=False)]))  # fmt: skip
    assert len(read_file(tmp_path / "separator.jsonl")) == 7  # a line separator inside a string is no new line


SEEDS = {"jsonl": "\n".join(LINES).encode(), "csv": pandas.DataFrame(ROWS).to_csv(index=False).encode()}


@strategies.composite
def mutated(draw):
    """A data file with some of its bytes replaced, removed, doubled or put in."""
    kind = draw(strategies.sampled_from(sorted(SEEDS)))
    raw = bytearray(SEEDS[kind])
    for _ in range(draw(strategies.integers(1, 6))):
        at, length = draw(strategies.integers(0, max(len(raw) - 1, 0))), draw(strategies.integers(0, 40))
        new = draw(strategies.one_of(
            strategies.binary(max_size=8), strategies.just(bytes(raw[at : at + length])),
            strategies.sampled_from([b"null", b"\\ud800", b"</s>", b'"', b"\n", b"{}", b"1e999", b"\x00", b"\xff\xfe", b"[[[["]),
        ))  # fmt: skip
        raw[at : at + draw(strategies.sampled_from([0, length]))] = new
    return kind, bytes(raw)


def answer(case, folder, tokenizer) -> None:
    """A mutated file gives training rows or one sentence that begins with the file, and nothing else."""
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
    answer(case, tmp_path_factory.getbasetemp(), tokenizer)


@pytest.fixture
def served(hub, tiny):
    """The stand-in hub with the tiny model and twenty rows, and the two as settings."""
    shutil.copytree(
        resolve(tiny).folder, hub.folder / "models/some/tiny", ignore=shutil.ignore_patterns("manifest.json")
    )
    (hub.folder / "datasets/some/rows/data").mkdir(parents=True)
    pandas.DataFrame(ROWS).to_parquet(hub.folder / "datasets/some/rows/data/train-00000-of-00001.parquet")
    return hub, tiny.change(model="some/tiny", data="some/rows", harder_rows=0)


CAUSES = {
    "absent": "the hub has no {thing} 'some/{name}', or it is private: check the spelling on http://",
    "gated": "some/{name} is gated: accept its terms on http://",
    "limited": "the hub limits requests from here (429, asked for some/{name}): wait some minutes",
    "down": "the hub answers 503 for some/{name}: that is on its side; try again later",
    "silent": "gave no answer within 1 seconds (asked for some/{name}): check network and proxy",
}


@pytest.mark.parametrize("fault", CAUSES)
def test_row_36_absent_gated_limited_or_silent(served, tokenizer, monkeypatch, fault):
    hub, settings = served
    monkeypatch.setattr(helpers_hub, "SECONDS", 1)
    hub.faults["*"] = fault
    start = time.monotonic()
    with pytest.raises(ModelError) as of_model:
        resolve(settings)
    with pytest.raises(DataError) as of_data:
        prepare(settings, tokenizer)
    assert time.monotonic() - start < 8
    assert CAUSES[fault].format(thing="model", name="tiny") in str(of_model.value)
    assert str(of_model.value).endswith("or set model to the folder of one that you have")
    assert CAUSES[fault].format(thing="data set", name="rows") in str(of_data.value)
    assert str(of_data.value).endswith("or set data to a file that you have")
    assert len(hub.requests) <= 6  # no second tries


def test_row_36_a_name_or_revision_that_is_none(served):
    with pytest.raises(HubError, match="'a/b/c' is neither a file or folder here nor a name of the hub"):
        fetch("model", "a/b/c")
    with pytest.raises(HubError, match="some/tiny has no revision '0000000000000000000000000000000000000000'"):
        fetch("model", "some/tiny", "0" * 40)


def test_row_36_a_disk_too_small_for_the_download(served, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(helpers_hub.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HubError, match="some/tiny takes .* GB free: make room, or set HF_HOME"):
        fetch("model", "some/tiny")


def test_row_37_prefetched_then_no_request_at_all(served, tokenizer, monkeypatch, tmp_path):
    hub, settings = served
    pins = {"revision": hub.commit("models", "some/tiny"), "data_revision": hub.commit("datasets", "some/rows")}
    for chosen in (settings, settings.change(**pins)):  # by branch and by pin
        load_base(resolve(chosen))
        assert prepare(chosen, tokenizer).counts["read"] == 20
    asked = len(hub.requests)
    for fault in (None, "silent", "down"):
        hub.faults = {"*": fault} if fault else {}
        load_base(resolve(settings.change(**pins)))
        prepare(settings.change(**pins), tokenizer)
        load_base(resolve(settings))
    assert len(hub.requests) == asked > 0


def test_row_37_a_dead_port_and_a_silent_socket(monkeypatch, tmp_path, tiny):
    monkeypatch.setattr(helpers_hub, "SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        use(monkeypatch, f"http://127.0.0.1:{port}", tmp_path)
        start = time.monotonic()
        with pytest.raises(
            ModelError, match="no connection to http://127.0.0.1:.*check network and proxy; or set model"
        ):
            resolve(tiny.change(model="some/tiny"))  # bound, but nobody listens
        silent.listen()
        with pytest.raises(ModelError, match="gave no answer within 1 seconds"):
            resolve(tiny.change(model="some/tiny"))
        assert time.monotonic() - start < 8


def test_row_37_offline_by_the_readers_own_choice(monkeypatch, tmp_path, tiny):
    use(monkeypatch, "http://127.0.0.1:9", tmp_path)
    monkeypatch.setattr(helpers_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match="some/tiny is not in the local cache and HF_HUB_OFFLINE is set: unset it once"
    ):
        resolve(tiny.change(model="some/tiny"))


def test_row_30_a_damaged_file_in_the_hubs_cache(served):
    """The hub's cache names each large file by its sha256, so that it is its own manifest."""
    _, settings = served
    file = (resolve(settings).folder / "model.safetensors").resolve()
    file.write_bytes(file.read_bytes()[:-4096] + bytes(4096))
    with pytest.raises(ModelError, match="model.safetensors is missing or damaged: .* run this again to fetch it"):
        load_base(resolve(settings))
    file.unlink()
    load_base(resolve(settings))  # as the message says
