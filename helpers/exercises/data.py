"""Checks for the exercises of 01_data: labels, end tokens, and rows that call a tool or think, written as text."""

import json

from helpers.data import Example, encode, encode_answers
from helpers.exercises import check, expect, need
from helpers.settings import IGNORED


@check
def never_stops(broken: Example, *, example: Example, tokenizer) -> str:
    """A row with the same tokens that teaches its answer and nothing about where the answer ends."""
    eos, before, after = tokenizer.eos_token_id, example.labels, broken.labels
    need(broken.input_ids == example.input_ids, "input_ids changed. Leave them, and break the labels.")
    need(len(after) == len(before), "there is one label for each token: mask a token, do not remove it.")
    need(eos not in after, f"{tokenizer.eos_token} is still among the labels, so the row still teaches where to stop.")
    truth = [IGNORED if label == eos else label for label in before]
    need(after == truth, f"mask only the end of the answer, with the label {IGNORED}; leave the other labels.")
    return "the loss of this row looks as healthy as before. That is why a guard looks for the end token."


@check
def two_turns(talk: list[dict], ends: float, *, tokenizer) -> str:
    """A conversation of two questions and two answers, and how many of its labels are the end token."""
    roles = [message.get("role") for message in talk]
    order = f"the roles are {roles}; two questions with their answers are user, assistant, user, assistant."
    need([role for role in roles if role != "system"] == ["user", "assistant"] * 2, order)
    labels = encode(Example(talk), tokenizer).labels
    truth = labels.count(tokenizer.eos_token_id)
    last = "more than the last answer is supervised: a model has to learn to end each of its turns."
    expect(ends, truth, f"not {ends:g}. Count the turns that the model itself has to write.", {1: last})
    read = labels.count(IGNORED)
    return f"each of the {truth} answers is supervised up to its end token; {read} tokens are only read."


def calls_a_tool(a: int, b: int) -> list[dict]:
    """A row that calls a tool: question, call, result and answer, in the form of Hermes and Qwen models."""
    call = json.dumps({"name": "multiply", "arguments": {"a": a, "b": b}})
    asked, result = f"What is {a} times {b}? Use the tool.", f"<tool_response>{a * b}</tool_response>"
    texts = (asked, f"<tool_call>{call}</tool_call>", result, f"It is {a * b}.")
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True)]


def thinks(a: int, b: int) -> list[dict]:
    """A row that thinks before it answers."""
    answer = f"<think>{a} + {b} = {a + b}</think>It is {a + b}."
    return [{"role": "user", "content": f"What is {a} plus {b}? Think."}, {"role": "assistant", "content": answer}]


@check
def call_and_thought(learned: set, *, tokenizer) -> str:
    """Which parts of the two kinds of rows are supervised, by what ``encode`` makes of them."""
    call, thought = calls_a_tool(12, 34), thinks(56, 78)
    parts = dict(zip(("question", "call", "result", "answer"), (turn["content"] for turn in call), strict=True))
    parts["thought"] = thought[-1]["content"].partition("</think>")[0]
    examples = [encoded for row in (call, thought) for encoded in encode_answers(Example(row), tokenizer)]
    text = " ".join(tokenizer.decode([label for label in e.labels if label >= 0]) for e in examples)
    truth = {name for name, part in parts.items() if "".join(part.split()) in "".join(text.split())}
    need(learned <= parts.keys(), f"the parts are called {', '.join(parts)}.")
    read = "a model only reads it: you or another program write it, so it must not be learned."
    need(learned <= truth, f"{' and '.join(sorted(learned - truth))}: {read}")
    need(learned == truth, "one is missing. Everything that the model has to write by itself is learned.")
    return f"{', '.join(sorted(truth))}. To the loss, a call and a thought are text like any other."
