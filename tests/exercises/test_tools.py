"""Rows that call a tool and rows that think: what is supervised, and which answers a function may give to a call."""

import json

from helpers.data import Example, encode
from helpers.exercises import data as rows
from helpers.exercises import inference

import pytest


def test_calls_thoughts_and_answers_are_learned_and_results_are_not(tokenizer):
    given = {"tokenizer": tokenizer}
    assert rows.call_and_thought({"call", "thought", "answer"}, **given).state == "right"
    assert "result: a model only reads it" in rows.call_and_thought({"call", "result"}, **given).message
    assert "one is missing" in rows.call_and_thought({"call"}, **given).message
    assert "the parts are called" in rows.call_and_thought({"prompt"}, **given).message


def test_a_row_that_calls_holds_json_and_its_result_once(tokenizer):
    row = rows.calls_a_tool(12, 34)
    call = json.loads(row[1]["content"].removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call == {"name": "multiply", "arguments": {"a": 12, "b": 34}} and "408" in row[2]["content"]
    labels = encode(Example(row), tokenizer).labels
    assert labels.count(tokenizer.eos_token_id) == 2, "the call and the answer each end"


@pytest.mark.parametrize(
    ("respond", "words"),
    [
        (lambda text: "36", "should give '<tool_response>36</tool_response>', not '36'"),
        (lambda text: "<tool_response>36</tool_response>", "for 'It is 36.' it should give None"),
        (
            lambda text: "<tool_response>36</tool_response>" if "<tool_call>" in text else None,
            "{12 x 3</tool_call>' it",
        ),
        (
            lambda text: "<tool_response>36</tool_response>" if '"name"' in text else None,
            "a call of a tool you offered?",
        ),
        (lambda text: json.loads(text), "JSONDecodeError"),
    ],
)
def test_a_function_that_answers_what_is_no_call_is_told_so_before_anything_is_trained(respond, words, tiny, tokenizer):
    assert words in inference.tool_answered(respond, settings=tiny, tokenizer=tokenizer).message
