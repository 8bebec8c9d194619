"""From a data source to encoded splits: equal to TRL's own preparation, fixed, disjoint, counted. Files: tests/sources."""

import json
from pathlib import Path

from helpers.data import Example, encode, prepare, read, unrelated
from helpers.models import load_base
from helpers.settings import IGNORED, settings_for
from helpers.sources import DataError, answer_of, resolve
from helpers.sources.rows import parse_llama2

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

ROWS = [{"question": f"How many bytes are {n} x 2?", "answer": f"The answer is: {2 * n}"} for n in range(20)]


def save(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_tokens_and_labels_are_those_trl_makes(tmp_path, tiny, tokenizer, data):
    """TRL tokenizes prompt and completion itself; what is supervised must agree, token by token."""
    rows = [e for e in data.train if len(e.messages) == 2][::8]
    assert len({e.family for e in rows}) > 12, "questions and conversations"
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": None, "shuffle_dataset": False}
    trainer = SFTTrainer(
        model=load_base(resolve(tiny), "fp32"),
        args=SFTConfig(str(tmp_path), **options),
        train_dataset=Dataset.from_list([{"prompt": e.messages[:-1], "completion": e.messages[-1:]} for e in rows]),
        processing_class=tokenizer,
    )
    for trl_row, row in zip(trainer.train_dataset, rows, strict=True):
        assert (trl_row["input_ids"], trl_row["labels"]) == (row.input_ids, row.labels)


def test_the_bundled_data_are_questions_and_conversations_whose_topics_the_prose_never_shares(data, tiny):
    kinds = {name: [answer_of(e.reference) is not None for e in getattr(data, name)] for name in data.summary()["rows"]}
    assert all(kinds["test"] + kinds["harder"]) and not any(kinds["prose"]) and data.scored
    for name in ("train", "validation"):
        assert 0.2 < 1 - sum(kinds[name]) / len(kinds[name]) < 0.35
    assert (len(data.train), len(data.test)) == (tiny.train_rows, tiny.test_rows)
    assert not {e.family for e in data.prose} & {e.family for e in data.train + data.validation}
    assert data.counts["dropped_too_long"] == 0 and any(len(e.messages) > 2 for e in data.train)


def test_what_measures_forgetting_shares_nothing_with_the_data(tokenizer, data):
    sets = unrelated(tokenizer)
    assert len(sets["general"]) == 20 and len(sets["unrelated"]) == 60
    assert all(e.labels == e.input_ids for e in sets["general"])
    assert not {e.asked for e in sets["unrelated"]} & {e.asked for e in data.train}


def test_one_bos_and_eos_supervised(tokenizer, data):
    for example in (e for e in data.train + data.test + data.harder + data.prose if len(e.messages) == 2):
        assert example.input_ids.count(tokenizer.bos_token_id) == 1
        assert example.input_ids[0] == tokenizer.bos_token_id
        assert example.labels[-1] == tokenizer.eos_token_id
        first = next(n for n, label in enumerate(example.labels) if label != IGNORED)
        assert set(example.labels[:first]) == {IGNORED} and IGNORED not in example.labels[first:]


def test_one_bos_also_where_the_tokenizer_writes_one_before_every_text(tokenizer, tiny):
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    like_llama = AutoTokenizer.from_pretrained(resolve(tiny).folder)
    like_llama.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    text = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHow much? [/INST] 8 GB. </s>"
    for each in (tokenizer, like_llama):
        example = encode(Example(parse_llama2(text)), each)
        assert example.input_ids.count(each.bos_token_id) == example.input_ids.count(each.eos_token_id) == 1
        assert example.input_ids[0] == each.bos_token_id and example.labels[-1] == each.eos_token_id


def test_splits_are_sized_fixed_and_the_same_for_every_seed(tmp_path, tokenizer):
    path = save(tmp_path / "rows.jsonl", ROWS)
    made = [prepare(settings_for("tiny", data=path, seed=seed), tokenizer) for seed in (0, 1)]
    assert made[0].summary() == made[1].summary() and made[0].scored
    assert made[0].summary()["rows"] == {"train": 12, "validation": 4, "test": 4, "harder": 0, "prose": 0}
    assert made[0].summary()["train_supervised_tokens"] == sum(x != IGNORED for e in made[0].train for x in e.labels)


def test_a_question_asked_twice_cannot_leak_into_the_test_rows(tmp_path, tokenizer, capsys):
    path = save(tmp_path / "rows.jsonl", ROWS + ROWS)
    data = prepare(settings_for("tiny", data=path, train_rows=10), tokenizer)
    assert data.counts == {"read": 40, "unusable": 0, "repeated": 20, "unused": 2, "dropped_too_long": 0}
    assert capsys.readouterr().out == "20 of 40 rows repeat a question and are left out\n"


def test_rows_that_differ_only_in_their_input_tools_or_context_are_different(tmp_path, tokenizer):
    for name in ("input", "context"):
        rows = [{"instruction": "Translate.", name: f"word {n}", "output": f"mot {n}"} for n in range(20)]
        assert prepare(settings_for("tiny", data=save(tmp_path / "r.jsonl", rows)), tokenizer).counts["repeated"] == 0
    rows = [{"question": "Which?", "answer": "That.", "tools": [{"name": f"f{n}"}]} for n in range(20)]
    splits, counts, _ = read(settings_for("tiny", data=save(tmp_path / "r.jsonl", rows)))
    assert counts["repeated"] == 0 and {e.tools[0]["name"] for part in splits.values() for e in part} == {f"f{n}" for n in range(20)}  # fmt: skip


def test_a_row_that_is_too_long_is_dropped_whole_and_counted(tmp_path, tokenizer, capsys):
    long = [{"question": f"{word} " * 3000, "answer": "The answer is: 1"} for word in ("one", "two")]
    path = save(tmp_path / "rows.jsonl", ROWS + long)
    with pytest.raises(DataError, match="2 of 22 rows are longer than max_length = 1024 tokens .* raise max_length"):
        prepare(settings_for("tiny", data=path), tokenizer)
    data = prepare(settings_for("tiny", data=path), tokenizer, max_lost=1.0)
    assert data.counts == {"read": 22, "unusable": 0, "repeated": 0, "unused": 0, "dropped_too_long": 2}
    assert "2 of 22 rows are longer than 1024 tokens and are left out" in capsys.readouterr().out
    assert all(e.labels[-1] == tokenizer.eos_token_id for e in data.train + data.test)


@pytest.mark.parametrize("mark", ["The answer is: {}", "So it is.\n#### {}", r"Thus $\boxed{{{}}}$."])
def test_each_mark_of_a_final_answer_makes_a_set_scored(tmp_path, tokenizer, capsys, mark):
    rows = [{"question": f"{n} x 2?", "answer": f"{n} x 2 is it. " + mark.format(2 * n)} for n in range(60)]
    assert prepare(settings_for("tiny", data=save(tmp_path / "all.jsonl", rows)), tokenizer).scored
    rows[::2] = [row | {"answer": "Nobody knows."} for row in rows[::2]]
    assert not prepare(settings_for("tiny", data=save(tmp_path / "half.jsonl", rows)), tokenizer).scored
    assert "of 12 test answers hold a final answer; replies are scored only if all do" in capsys.readouterr().out
