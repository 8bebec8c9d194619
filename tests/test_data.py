"""From rows to tokens: equal to TRL's own preparation, one BOS, EOS supervised, and a sentence for each bad row."""

import json

from helpers.data import (
    IGNORED,
    DataError,
    Example,
    encode,
    fingerprint,
    parse_llama2,
    prepare,
    read_file,
    training_order,
)
from helpers.models import load_base
from helpers.settings import settings_for
from helpers.sources import base_folder

import pandas
import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer


def test_tokens_and_labels_are_those_trl_makes(tmp_path, tiny, tokenizer, data):
    """TRL tokenizes prompt and completion itself; what is supervised must agree, token by token."""
    rows = data.train[:20]
    trainer = SFTTrainer(
        model=load_base(tiny, "fp32"),
        args=SFTConfig(
            output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None, shuffle_dataset=False
        ),
        train_dataset=Dataset.from_list([{"prompt": e.messages[:-1], "completion": e.messages[-1:]} for e in rows]),
        processing_class=tokenizer,
    )
    for theirs, ours in zip(trainer.train_dataset, rows, strict=True):
        assert theirs["input_ids"] == ours.input_ids
        assert theirs["labels"] == ours.labels


def test_one_bos_and_eos_supervised(tokenizer, data):
    for example in data.train + data.test + data.harder:
        assert example.input_ids.count(tokenizer.bos_token_id) == 1
        assert example.input_ids[0] == tokenizer.bos_token_id
        assert example.labels[-1] == tokenizer.eos_token_id
        assert set(example.labels[: example.labels.index(next(x for x in example.labels if x != IGNORED))]) == {IGNORED}


def test_each_answer_of_a_longer_conversation_is_supervised(tokenizer):
    example = encode(
        Example(parse_llama2("<s>[INST] one [/INST] two </s><s>[INST] three [/INST] four </s>", "row")), tokenizer
    )
    assert [m["content"] for m in example.messages] == ["one", "two", "three", "four"]
    kept = tokenizer.decode([label for label in example.labels if label != IGNORED])
    assert "two" in kept and "four" in kept and "one" not in kept and "three" not in kept
    assert example.labels.count(tokenizer.eos_token_id) == 2


def test_text_with_special_tokens_renders_back_without_doubling_them(tokenizer):
    text = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHow much? [/INST] 8 GB. </s>"
    messages = parse_llama2(text, "row")
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    example = encode(Example(messages), tokenizer)
    assert example.input_ids.count(tokenizer.bos_token_id) == example.input_ids.count(tokenizer.eos_token_id) == 1


def test_order_depends_on_the_seed_and_not_on_the_method(data, tiny):
    orders = {m: fingerprint(training_order(data, settings_for("tiny", m))) for m in ("full", "lora", "dora")}
    assert len(set(orders.values())) == 1
    assert fingerprint(training_order(data, tiny.change(seed=1))) not in orders.values()
    order = training_order(data, tiny.change(max_steps=100))
    assert len(order) == 800  # two and a half passes
    assert {id(e) for e in order[:320]} == {id(e) for e in data.train}


def test_rows_of_one_batch_are_of_like_length(data, tiny):
    order = training_order(data, tiny)
    padded = sum(8 * max(len(e.input_ids) for e in order[i : i + 8]) for i in range(0, 320, 8))
    assert padded < 1.05 * sum(len(e.input_ids) for e in order)


ROWS = [{"question": f"How many bytes are {n} x 2?", "answer": f"The answer is: {2 * n}"} for n in range(20)]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    "columns", [("question", "answer"), ("prompt", "completion"), ("query", "response"), ("instruction", "output")]
)
def test_own_files_of_each_kind(tmp_path, tokenizer, kind, columns):
    path = tmp_path / f"rows.{kind}"
    frame = pandas.DataFrame(ROWS).set_axis(columns, axis=1)
    if kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    data = prepare(settings_for("tiny", data=str(path)), tokenizer)
    assert (len(data.test), len(data.validation), len(data.train), len(data.harder)) == (4, 4, 12, 0)
    assert data.scored and data.counts["read"] == 20


def test_messages_and_text_columns(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]}
        for r in ROWS[:10]
    ]
    lines += [{"text": f"<s>[INST] {r['question']} [/INST] {r['answer']} </s>"} for r in ROWS[10:]]
    path.write_text("\ufeff" + "\n".join(map(json.dumps, lines)), encoding="utf-8")  # with a byte order mark
    assert prepare(settings_for("tiny", data=str(path)), tokenizer).counts["read"] == 20


def test_a_question_asked_twice_cannot_leak_into_the_test_rows(tmp_path, tokenizer):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS + ROWS)))
    assert prepare(settings_for("tiny", data=str(path)), tokenizer).counts["read"] == 20


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "a", "answer": ', ":3: not JSON"),
        ('["question"]', ":3: each line must be one JSON object"),
        ('{"frage": "a", "antwort": "b"}', ":3: found the columns frage, antwort; understood are"),
        ('{"question": "a", "answer": null}', ":3: the assistant content is None, not text"),
        ('{"question": 7, "answer": "b"}', ":3: the user content is 7, not text"),
        ('{"question": "a", "answer": "  "}', ":3: the assistant content is '  ', not text"),
        (
            '{"messages": [{"role": "bot", "content": "a"}]}',
            ":3: unknown role 'bot'; allowed are system, user, assistant",
        ),
        ('{"messages": [{"role": "user", "content": "a"}]}', ":3: a conversation must end with an assistant message"),
        ('{"messages": "hello"}', ":3: messages must be a list"),
        ('{"text": "no structure"}', ":3: this text has no [INST] question"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, tokenizer, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), json.dumps(ROWS[1]), line, json.dumps(ROWS[2])]))
    with pytest.raises(DataError) as error:
        prepare(settings_for("tiny", data=str(path)), tokenizer)
    assert f"{path}{words}" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.jsonl", b"", "0 different questions"),
        ("latin.jsonl", '{"question": "é"}'.encode("latin-1"), "not UTF-8"),
        ("empty.csv", b"", "cannot be read"),
        ("broken.parquet", b"PAR1", "cannot be read"),
        ("rows.xlsx", b"", "there is no file"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, tokenizer, name, content, words):
    path = tmp_path / name
    if words != "there is no file":
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        if path.suffix == ".xlsx":
            read_file(path)
        else:
            prepare(settings_for("tiny", data=str(path)), tokenizer)
    assert name in str(error.value)


def test_long_rows_are_counted_and_stop_the_run_above_a_share(tokenizer):
    with pytest.raises(DataError, match="longer than max_length = 60 tokens .the longest has"):
        prepare(settings_for("tiny", max_length=60), tokenizer)
    data = prepare(settings_for("tiny", max_length=60), tokenizer, max_lost=1.0)
    assert 0 < data.counts["dropped_too_long"] < data.counts["read"]
    assert max(len(e.input_ids) for e in data.train) <= 60


def test_a_template_without_an_end_token_is_refused(tiny):
    tokenizer = AutoTokenizer.from_pretrained(base_folder(tiny))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="never learn to stop"):
        encode(Example([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]), tokenizer)
