"""Checks for the exercises of 01 and 05 about rows that call a tool and rows that think, written as text in the answers."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable

from helpers.data import Data, Example, encode, encode_answers
from helpers.exercises import check, need
from helpers.inference import generate
from helpers.settings import Settings
from helpers.training import train


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
    need(learned <= set(parts), f"the parts are called {', '.join(parts)}.")
    read = "a model only reads it: another program writes it, so it must not be learned."
    need(learned <= truth, f"{' and '.join(sorted(learned - truth))}: {read}")
    need(learned == truth, "one is missing. Everything that the model has to write by itself is learned.")
    return f"{', '.join(sorted(truth))}. To the loss, a call and a thought are text like any other."


@check
def tool_answered(respond: Callable, *, settings: Settings, tokenizer, steps: int = 60) -> str:
    """A function from a model's text to the next user turn, or None; then a model is trained to call, and is asked."""
    question, call, result, _ = calls_a_tool(12, 3)
    got = respond(call["content"])
    need(got == result["content"], f"for {call['content']} it should give {result['content']}, not {got!r}.")
    other = '<tool_call>{"name": "delete_files", "arguments": {}}</tool_call>'
    for text, why in (
        ("It is 36.", "there is no call"),
        ("<tool_call>{12 x 3</tool_call>", "this is no JSON"),
        (other, "no such tool was offered, and a model may write anything"),
    ):
        need(respond(text) is None, f"for {text!r} it should give None: {why}.")
    rng = random.Random(0)
    numbers = [(rng.randrange(10, 99), rng.randrange(10, 99)) for _ in range(4 * steps)]
    rows = [
        row
        for pair in numbers
        for make in (calls_a_tool, thinks)
        for row in encode_answers(Example(make(*pair)), tokenizer)
    ]
    held_out = [encode(Example(thinks(7, 8)), tokenizer)]
    with tempfile.TemporaryDirectory() as folder:
        few = settings.change(runs_dir=folder, max_steps=steps, data="bundled")
        trained = train(few, Data("tools", rows, held_out, held_out, harder=[], prose=[], counts={}))

    def said(messages: list[dict]) -> str:
        return generate(trained.model, tokenizer, [messages], 60)[0]

    asked = calls_a_tool(23, 45)[:1]
    wrote = said(asked)
    answer = respond(wrote) or "nothing, for it is no call"
    final = said([*asked, {"role": "assistant", "content": wrote}, {"role": "user", "content": answer}])
    return (
        f"after {steps} steps the model was asked {asked[0]['content']!r} and wrote {wrote!r}. Your function gave {answer!r}, and "
        f"the model said {final!r}. Asked to think, it wrote {said(thinks(31, 24)[:1])!r}."
    )
