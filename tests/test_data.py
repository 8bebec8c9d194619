"""From rows to tokens: equal to TRL's own preparation, one BOS, EOS supervised. Faulty rows: test_faults_data."""

import json

from helpers.data import Example, encode, prepare
from helpers.models import load_base
from helpers.settings import IGNORED, settings_for
from helpers.sources import DataError, resolve
from helpers.sources.files import parse_llama2

import pandas
import pytest
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer


def test_tokens_and_labels_are_those_trl_makes(tmp_path, tiny, tokenizer, data):
    """TRL tokenizes prompt and completion itself; what is supervised must agree, token by token."""
    rows = data.train[:20]
    trainer = SFTTrainer(
        model=load_base(resolve(tiny), "fp32"),
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


def test_a_question_asked_twice_cannot_leak_into_the_test_rows(tmp_path, tokenizer, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS + ROWS)))
    data = prepare(settings_for("tiny", data=str(path), train_rows=10), tokenizer)
    assert data.counts == {"read": 40, "unusable": 0, "repeated": 20, "unused": 2, "dropped_too_long": 0}
    assert capsys.readouterr().out == "20 of 40 rows repeat a question and are left out\n"


def test_a_template_without_an_end_token_is_refused(tiny):
    tokenizer = AutoTokenizer.from_pretrained(resolve(tiny).folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="never learn to stop"):
        encode(Example([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]), tokenizer)
