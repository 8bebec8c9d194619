"""Whole sets with real templates: the walkthrough's guanaco, the collected cases, and guards that hold whatever ends a turn."""

import json
from pathlib import Path

from helpers import guards
from helpers.data import prepare
from helpers.settings import IGNORED, ROOT, settings_for
from helpers.sources import DataError
from helpers.sources.templates import DATE

import pandas
import pytest

GUANACO = ROOT.parent / "shared/data/guanaco-llama2-1k.parquet"
CASES = ROOT.parent / "shared/cases"
ROWS = [{"question": f"How many bytes are {n} x 2?", "answer": f"The answer is: {2 * n}"} for n in range(20)]


def save(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_template_that_writes_the_date_leaves_it_in_the_summary(tmp_path, tokenizer, speaks):
    path = save(tmp_path / "rows.jsonl", ROWS)
    assert prepare(settings_for("tiny", data=path), tokenizer).summary()["date"] is None
    assert prepare(settings_for("tiny", data=path), speaks("llama3_2")).summary()["date"] == DATE.isoformat()


@pytest.mark.parametrize("family", ["gemma", "phi3", "qwen3", "llama3_2", "gptoss", "llama2"])
def test_guards_hold_whatever_ends_a_turn(tmp_path, speaks, family):
    """Conversations that open alike and go on differently give equal rows where a template makes one of each answer."""
    talks = [[ROWS[n % 7], ROWS[n]] for n in range(20)]
    rows = [{"messages": [{"role": r, "content": row[c]} for row in talk for r, c in (("user", "question"), ("assistant", "answer"))]} for talk in talks]  # fmt: skip
    tokenizer = speaks(family)
    data = prepare(settings_for("tiny", data=save(tmp_path / "rows.jsonl", rows)), tokenizer)
    checks = guards.tokens_are_sound(data, tokenizer, len(tokenizer))
    assert [check.name for check in checks][1] == "EOS supervised" and len(data.train) >= 6
    assert (len(data.test) > 4) == (family in ("qwen3", "gptoss"))
    last = max(n for n, label in enumerate(data.train[0].labels) if label != IGNORED)
    data.train[0].labels[last] = IGNORED
    with pytest.raises(guards.GuardError, match="EOS supervised: row 0 has an answer without"):
        guards.tokens_are_sound(data, tokenizer, len(tokenizer))


@pytest.mark.skipif(not GUANACO.is_file(), reason="the real guanaco-llama2-1k is not here")
def test_the_walkthroughs_data_set_is_rendered_masked_and_counted_right(speaks, capsys):
    tokenizer = speaks("llama2")
    texts = [row["text"] for row in pandas.read_parquet(GUANACO).to_dict("records")]
    data = prepare(settings_for("tiny", data=str(GUANACO), train_rows=1000, max_length=20_000), tokenizer)
    assert data.counts == {"read": 1000, "unusable": 3, "repeated": 0, "unused": 0, "dropped_too_long": 0}
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "3 of 1000 rows cannot be used and are skipped:"
    assert told[1].endswith("row 435: the user content is blank: '  ' (and 1 more rows)")
    assert told[2].endswith("row 900: the assistant content is blank: ''")
    assert sum(text.count("[INST]") > 1 for text in texts) == 353 and max(map(len, texts)) == 11_443
    every = data.train + data.validation + data.test
    turns = [sum(m["role"] == "user" for m in e.messages) for e in every]
    assert (len(every), sum(n > 1 for n in turns), max(turns)) == (997, 350, 8)  # the three had several turns
    chosen = [texts[int(e.where.split()[-1]) - 1] for e in every]
    written = ["".join(f" {m['content']} </s>" for m in e.messages if m["role"] == "assistant") for e in every]
    ids, answers = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (chosen, written))
    for e, n, text, whole, answer in zip(every, turns, chosen, ids, answers, strict=True):
        assert tokenizer.apply_chat_template(e.messages, tokenize=False) == text and e.input_ids == whole
        assert [label for label in e.labels if label != IGNORED] == answer
        assert e.labels.count(tokenizer.eos_token_id) == e.input_ids.count(tokenizer.bos_token_id) == n
    eleven = next(e for e in every if e.where.endswith(" row 11"))
    assert [m["content"] for m in eleven.messages[2:]] == ["Thanks, that's awesome!", "No prob, bud!"]


@pytest.mark.skipif(not CASES.is_dir(), reason="the collected cases are not here")
@pytest.mark.parametrize("family", ["llama2", "qwen2_5", "qwen3", "gemma"])
def test_no_collected_case_ends_in_silence_or_a_bare_error(speaks, family):
    for path in sorted(CASES.glob("*.[jc]s*")):
        try:
            data = prepare(settings_for("tiny", data=str(path)), speaks(family))
        except DataError as error:
            assert str(error).startswith(f"{path}:") and "the chat template of this model" in str(error)
        else:
            assert all(e.labels.count(IGNORED) < len(e.labels) for e in data.train) and data.counts["unusable"] == 0
