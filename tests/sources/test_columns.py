"""What a row says is used or refused by name: columns, keys of a turn, roles, parts, blank texts, Llama 2's text."""

from helpers.sources import DataError
from helpers.sources.rows import is_blank, parse_llama2, to_messages

import pytest

PAIR = {"question": "How much is 3 x 2, in French?", "answer": "Six, as 72 is not."}
TURNS = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]


def refusal(row: dict) -> str:
    with pytest.raises(DataError) as error:
        to_messages(row)
    return str(error.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"hint": "Count the fingers."},
        {"language": "Spanish"},
        {"persona": "pirate"},
        {"choices": ["5", "6"]},
        {"passage": "Two hands have ten fingers."},
        {"documents": [{"title": "t", "text": "x"}]},
        {"images": ["a.png"]},
        {"label": False},
        {"label": 1},
        {"weight": 0},
        {"chosen": "Six.", "rejected": "Seven."},
        {"tool_calls": [{"function": {"name": "f"}}]},
        {"source": "The quick brown fox jumps over the lazy dog, and then it sleeps until the sun goes down again."},
        {"schema": "CREATE TABLE t (id INT)"},
        {"answer_before": "7 or 8"},
    ],
)
@pytest.mark.parametrize("row", [PAIR, {"messages": TURNS}])
def test_a_column_that_may_carry_meaning_is_refused_by_name(row, extra):
    assert f"the column {next(iter(extra))!r} is not used and may carry meaning" in refusal(row | extra)


@pytest.mark.parametrize(
    "extra",
    [
        {"id": "x", "source": "hand-written", "category": "sums", "created_at": "1 May", "model_name": "m"},
        {"url": "https://example.org/a", "promptId": "abc", "tags": ["a", "b"], "meta": {"k": "v"}, "score": 0.3},
        {"upvotes": 3, "toxic": False, "row": "0017", "commit": "9198c69ce4d5", "weight": 1.0, "": "12"},
        {"hint": None, "context": "", "choices": [], "extra": " \u200b "},
        {"final": "72", "words": "in French", "text": "How much is 3 x 2, in French? -> Six, as 72 is not."},
    ],
)
def test_metadata_empty_columns_and_repetitions_pass(extra):
    assert to_messages(PAIR | extra) == to_messages(PAIR)


def test_what_is_repeated_only_by_chance_is_refused():
    assert "'final' is not used" in refusal(PAIR | {"final": "is no"})  # "is not" holds it, but not as words


@pytest.mark.parametrize(
    ("key", "value"),
    [("train", False), ("loss_mask", 0), ("images", ["a.png"]), ("function_call", {"name": "f"}), ("mood", "angry")],
)
def test_a_key_of_a_turn_that_may_carry_meaning_is_refused_by_name(key, value):
    assert f"the turn key {key!r} is not used" in refusal({"messages": [TURNS[0], TURNS[1] | {key: value}]})


def test_input_and_context_are_written_below_the_question():
    row = {"instruction": "Translate.", "input": "the cat", "context": "A letter.", "output": "le chat"}
    assert to_messages(row)[0][0] == {"role": "user", "content": "Translate.\n\nthe cat\n\nA letter."}
    assert to_messages({"input": "2 x 3", "output": "6"})[0][0]["content"] == "2 x 3"


def test_reasoning_of_a_pair_and_of_a_turn_is_kept_under_one_name():
    for name in ("reasoning_content", "reasoning", "thinking"):
        answer = {"role": "assistant", "content": "an answer", "reasoning_content": "first this"}
        assert to_messages({"question": "a", "answer": "an answer", name: "first this"})[0][-1] == answer
        assert to_messages({"messages": [TURNS[0], TURNS[1] | {name: "first this"}]})[0][-1] == answer


CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
ASKED = {"role": "user", "content": "weather?"}


@pytest.mark.parametrize(
    "call", [CALL, {"name": "weather", "arguments": {"city": "Ulm"}}, {"function": CALL["function"] | {"arguments": {"city": "Ulm"}}}]
)  # fmt: skip
def test_tool_calls_become_functions_with_arguments_as_an_object(call):
    row = {
        "messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}],
        "tools": '[{"name": "weather"}]',
    }
    messages, tools = to_messages(row)
    assert messages[1]["content"] == "" and tools == [{"name": "weather"}]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Ulm"}}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"name": "f", "parameters": {"x": 1}}, "the tool call key 'parameters' is not used"),
        ({"function": "f"}, "a tool call must hold a function with a name"),
        ({"function": {"name": "f", "arguments": "{x"}}, "arguments, an object or one as JSON text"),
        ("f(x)", "tool_calls must be a list of objects"),
    ],
)
def test_a_tool_call_that_would_lose_something_is_refused(call, words):
    assert words in refusal({"messages": [ASKED, {"role": "assistant", "tool_calls": [call]}]})


def test_a_weight_of_zero_is_kept_and_what_follows_the_last_answer_to_learn_is_cut():
    turns = [*TURNS, {"role": "user", "content": "again"}, {"role": "assistant", "content": "bad", "weight": 0}]
    assert to_messages({"messages": turns})[0] == TURNS
    first = [TURNS[0], TURNS[1] | {"weight": 0}, *TURNS]
    assert to_messages({"messages": first})[0] == first
    assert "must be 0 or 1, not 0.5" in refusal({"messages": [TURNS[0], TURNS[1] | {"weight": 0.5}]})
    assert "must end with an assistant message to learn from" in refusal({"messages": first[:2]})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a", "answer": None}, "the assistant content is null, not text"),
        ({"question": 7, "answer": "b"}, "the user content is 7, not text"),
        ({"question": "a", "answer": "  "}, "the assistant content is blank: '  '"),
        ({"question": "\u200b\ufeff\u2060", "answer": "b"}, "the user content is blank"),
        ({"question": "a", "answer": "\u3164\u2800"}, "the assistant content is blank"),
        ({"question": ["a"], "answer": "b"}, "the user content is ['a'], not text"),
        ({"question": "a", "answer": "b\ud800"}, "holds half a character ('\\ud800')"),
        ({"text": None}, "the text is null, not text"),
        ({"text": "no structure"}, "this text has no [INST] question"),
        ({"messages": TURNS[:1]}, "must end with an assistant message"),
        ({"messages": TURNS[1:]}, "must end with an assistant message to learn from, after a user message"),
        ({"messages": [TURNS[0], {"role": "assistant"}]}, "the assistant content is null, not text"),
        ({"messages": "hello"}, "messages must be a list of objects with role and content"),
        ({"messages": []}, "must end with an assistant message"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "unknown role 'bot'; allowed are system, user, assistant, tool"),
        ({"conversations": [{"from": "observation", "value": "a"}]}, "unknown role 'observation'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "a part of the type 'image_url'"),
        ({"question": "a", "answer": "b", "history": "before"}, "history must be a list of pairs"),
        ({"frage": "a", "antwort": "b"}, "found the columns frage, antwort; understood are messages or conversations"),
        ({}, "found the columns none"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_says_why(row, words):
    assert words in refusal(row)


def test_a_system_turn_or_cell_that_says_nothing_is_no_turn():
    for content in ("", " ", None):
        assert to_messages({"messages": [{"role": "system", "content": content}, *TURNS]})[0] == TURNS
        assert to_messages({"conversations": [{"from": "system", "value": content}, *TURNS]})[0] == TURNS
        assert [m["role"] for m in to_messages(PAIR | {"system": content})[0]] == ["user", "assistant"]
    assert "'system' is not used" in refusal({"messages": [{"role": "system", "content": "A"}, *TURNS], "system": "B"})


def test_blank_means_no_visible_character_in_any_script():
    assert all(map(is_blank, ["", " \n\t", "\u200d", "\u00ad\u200e", "\u0301", "\u180e", None, [], {}]))
    assert not any(map(is_blank, ["a", "再", "é", "e\u0301", "🙂", "ा क", ".", 0, False, ["x"]]))


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("<s>[INST] a [/INST] b </s>", "ua"),
        ("[INST] a [/INST] b", "ua"),
        ("<s>[INST] a [/INST] b </s><s>[INST] c [/INST] d </s>", "uaua"),
        ("<s>[INST] a [/INST] b [INST] c [/INST] d </s>", "uaua"),
        ("<s>[INST] a [/INST] b <s>[INST] c [/INST] d", "uaua"),
        ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b </s>", "sua"),
        ("<s>[INST] <<SYS>>\n\n<</SYS>>\n\na [/INST] b </s>", "ua"),
    ],
)
def test_llama2_text_is_taken_apart_with_and_without_end_marks(text, roles):
    messages = parse_llama2(text)
    assert "".join(m["role"][0] for m in messages) == roles
    assert [m["content"] for m in messages if m["role"] != "system"] == list("abcd"[: len(roles.strip("s"))])


@pytest.mark.parametrize(
    "text",
    [
        "<s>[INST] a [/INST] b </s> lost words <s>[INST] c [/INST] d </s>",
        "<s>[INST] a [/INST] b [/INST] c </s>",
        "<s>[INST] a [INST] b [/INST] c </s>",
        "<s>[INST] a </s>",
        "before <s>[INST] a [/INST] b </s>",
        "<s>[INST] a [/INST] b </s><s>[INST] <<SYS>>S<</SYS>> c [/INST] d </s>",
        "<s>[INST] <<SYS>> never closed [/INST] b </s>",
        "a [/INST] b",
    ],
)
def test_llama2_text_that_would_lose_or_mix_something_is_refused(text):
    with pytest.raises(DataError, match="this text (breaks the order|has no)"):
        parse_llama2(text)
