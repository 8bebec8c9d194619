"""The bundled conversations: enough, real turns, one style, no near duplicates, and topics that training never sees."""

import re
from collections import Counter

from helpers.data import prepare
from helpers.settings import settings_for
from helpers.sources.conversations import FILE, UNRELATED, read_conversations, split_conversations

import pytest

EVERY = read_conversations()


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9_']+", text.lower())


def test_there_are_enough_and_a_third_has_several_turns():
    trained = [c for c in EVERY if not c["held_out"]]
    several = [c for c in trained if len(c["messages"]) > 2]
    assert len(trained) >= 500 and len(several) >= len(trained) / 3
    assert len(Counter(c["topic"] for c in EVERY)) >= 19


def test_every_answer_is_short_and_ends_with_one_thing_to_try():
    answers = [m["content"] for c in EVERY for m in c["messages"] if m["role"] == "assistant"]
    assert [a for a in answers if a.count("Try: ") != 1 or not 20 <= len(a.split()) <= 60] == []


def test_no_two_questions_share_a_run_of_six_words():
    seen: dict[tuple, str] = {}
    for conversation in EVERY:
        question = conversation["messages"][0]["content"]
        runs = {tuple(words(question)[i : i + 6]) for i in range(len(words(question)) - 5)}
        repeated = [seen[run] for run in runs if run in seen]
        # two people who meet one message quote the same words
        quoted = any(words_of in question for words_of in ("Error", "unexpected keyword", "not initialized"))
        assert not repeated or quoted, f"{question!r} repeats {repeated[0]!r}"
        seen |= dict.fromkeys(runs, question)


def test_the_test_rows_are_of_topics_that_training_never_sees():
    splits = split_conversations(10_000, 40, 10_000)
    topics = {name: {c["topic"] for c in rows} for name, rows in splits.items()}
    assert len(topics["test"]) == 3 and not topics["test"] & (topics["train"] | topics["validation"])
    assert sum(map(len, splits.values())) == len(EVERY), "nothing is lost"


@pytest.mark.parametrize("file", [FILE, UNRELATED])
def test_every_line_is_a_topic_or_a_turn_in_its_place(file):
    every = read_conversations(file)
    for conversation in every:
        roles = [m["role"] for m in conversation["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles, conversation
    lines = file.read_text(encoding="utf-8").splitlines()
    assert sum(len(c["messages"]) for c in every) == sum(line.startswith(("Q: ", "A: ")) for line in lines)


def test_they_are_data_for_a_run(tokenizer):
    settings = settings_for("tiny", data="conversations", train_rows=30, validation_rows=5, test_rows=10)
    data = prepare(settings, tokenizer, max_lost=1)
    assert data.source == "conversations" and not data.scored
    several = next(e for e in data.train if len(e.messages) > 2)
    end = several.labels.count(tokenizer.eos_token_id)
    assert end == len(several.messages) / 2, "each answer is supervised up to its end token"
