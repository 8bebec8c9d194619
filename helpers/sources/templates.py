"""Chat templates: how a conversation is written for a model, and which tokens end its turn.

A template is a small program of the model's, so nothing is assumed of it: what it writes is looked at.
"""

from __future__ import annotations

import json
import re
import signal
import threading
from contextlib import contextmanager
from datetime import date
from functools import lru_cache
from os.path import commonprefix  # of any lists
from pathlib import Path

from helpers.settings import IGNORED
from helpers.sources.manifest import ModelError
from helpers.sources.rows import DataError, answers_to_learn

DATE = date(2024, 7, 26)  # written in place of today's, so that no row changes at midnight
SECONDS = 10  # that a template may take for one conversation
LLAMA2_TEMPLATE = Path(__file__).with_name("llama2.jinja").read_text(encoding="utf-8")
_CLOCK = re.compile(r"strftime_now\(\s*(?:format\s*=\s*)?(['\"])(.*?)\1\s*\)")
_ASKED, _ANSWERED, _CALLED = "qwertz", "asdfgh", "yxcvbn"  # what the probes say: found again in the written text


class RewritesEarlierTurns(DataError):
    """The template writes an answer in another way once the conversation goes on, as those that drop reasoning do."""


def render(tokenizer, messages: list[dict], tools: list[dict] | None = None, answer_next: bool = False) -> str:
    """A conversation as the model's chat template writes it, special tokens included, dated :data:`DATE`.

    With ``answer_next``, it ends with what opens an answer. DataError for a conversation that the template refuses.
    """
    messages = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    try:
        template = tokenizer.get_chat_template(tools=tools)
        template = _CLOCK.sub(lambda call: repr(DATE.strftime(call[2])), template)
        if "strftime_now(" in template:
            raise ValueError("it writes today's date in a form that cannot be replaced, so rows would change every day")
        with _time_limit():
            return tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=template, add_generation_prompt=answer_next, tokenize=False
            )
    except TimeoutError:
        raise ModelError(
            f"the chat template of this model did not finish one conversation in {SECONDS} seconds: use another template"
        ) from None
    except Exception as error:  # whatever a program may raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"the chat template of this model refuses it: {reason}") from None


@contextmanager
def _time_limit():
    """Stop what runs longer than :data:`SECONDS`; only the main thread can be stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def end_tokens(tokenizer) -> set[int]:
    """The tokens that end a turn, as the model's chat template writes them: ``<end_of_turn>`` and not EOS for Gemma."""
    return set(_end_tokens(tokenizer, str(tokenizer.chat_template)))


@lru_cache(maxsize=8)
def _end_tokens(tokenizer, template: str) -> frozenset[int]:
    added = {i: token.special for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    question, answer = {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _ANSWERED}
    function = {"name": "f", "arguments": {"x": _CALLED}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}

    def after(probe: str, *messages: dict, answer_next: bool = False) -> list[int]:
        """The added tokens behind the last place of the probe; none where the template refuses or leaves out the probe."""
        try:
            _, found, tail = render(tokenizer, list(messages), answer_next=answer_next).rpartition(probe)
        except DataError:
            return []
        ids = [i for i in tokenizer(tail, add_special_tokens=False)["input_ids"] if i in added] if found else []
        return [i for i in ids if added[i]] or ids

    last = after(_ANSWERED, question, answer)
    in_between = after(_ANSWERED, question, answer, question, answer_next=True)
    shared = commonprefix([last, in_between])  # without the end of the whole text, as Phi-3 writes one
    ends = {tokenizer.eos_token_id} & set(shared) or set(shared[:1] or last[-1:])
    called = after(_CALLED, question, call)
    return frozenset(ends if ends & set(called) else ends | set(called[-1:]))


def _left_out(tokenizer, messages: list[dict], tools: list[dict] | None, text: str) -> str | None:
    """What a template left out when it wrote a conversation; reasoning of earlier answers may be, as no model sees it again."""

    def written_without(message: dict, key: str) -> bool:
        rest = [{k: v for k, v in m.items() if m is not message or k != key} for m in messages]
        return render(tokenizer, rest, tools) == text

    squeezed = "".join(text.split())
    for message in messages:
        earlier = message["role"] == "assistant" and message is not messages[-1]
        content = message["content"].rpartition("</think>")[2] if earlier else message["content"]
        forms = content, json.dumps(content, ensure_ascii=False)[1:-1]  # some templates write results as JSON
        if not any("".join(form.split()) in squeezed for form in forms):
            return f"the {message['role']} content"
        for key in () if earlier or message["role"] == "tool" else ("reasoning_content", "tool_calls", "name"):
            if key in message and written_without(message, key):
                return f"the {key} of the {message['role']}"
    return "the tools" if tools and render(tokenizer, messages) == text else None


def tokens_and_labels(tokenizer, messages: list[dict], tools: list[dict] | None = None) -> tuple[list[int], list[int]]:
    """The tokens of a conversation up to its last answer to learn, and the label of each: in such answers itself, else -100.

    DataError if a text holds a special token, or the template refuses the conversation, leaves something out, does not end
    an answer, or (:class:`RewritesEarlierTurns`) does not leave earlier turns as they were.
    """
    content = json.dumps([messages, tools], ensure_ascii=False, default=str)
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content.strip()]
    if mark := next((token for token in special if json.dumps(token, ensure_ascii=False)[1:-1] in content), None):
        raise DataError(
            f"a text holds {mark!r}, which this model reads as a command and not as text; take it out, or give the row as "
            "one text in Llama 2's form, which is taken apart"
        )
    turns = [_turn(tokenizer, messages[: n + 1], tools) for n in answers_to_learn(messages)]
    if not turns:
        raise DataError("there is no answer to learn from")
    ids, ends = turns[-1][1], end_tokens(tokenizer)
    labels = [IGNORED] * len(ids)
    for start, answered in turns:
        stop = max((i + 1 for i in range(start, len(answered)) if answered[i] in ends), default=0)
        if not stop:
            raise DataError(
                "the chat template does not end an answer with a token of its own, so the model would never learn to stop; "
                "use a template that does"
            )
        if ids[:stop] != answered[:stop]:
            raise RewritesEarlierTurns("the chat template rewrites earlier turns; give one row for each answer")
        labels[start:stop] = ids[start:stop]
    return ids, labels


def _turn(tokenizer, messages: list[dict], tools: list[dict] | None) -> tuple[int, list[int]]:
    """A conversation that ends with an answer: the number of tokens that ask for the answer, and all tokens."""

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt, text = render(tokenizer, messages[:-1], tools, answer_next=True), render(tokenizer, messages, tools)
    if lost := _left_out(tokenizer, messages, tools, text):
        raise DataError(
            f"the chat template of this model leaves out {lost}: use a template that writes it, or rows without it"
        )
    if not text.startswith(prompt):
        raise DataError(
            f"the chat template asks for an answer with {prompt[-20:]!r} and then writes the answer without it, so the model "
            "would not be asked as it was trained: give the reasoning of the answers, or use another chat template"
        )
    asked, ids = ids_of(prompt), ids_of(text)
    if ids[: len(asked)] == asked:
        return len(asked), ids
    # a token would reach across the border where the model is asked; some tokenizers put a space before a first word
    answer = text[len(prompt) :]
    border = "x" if answer[0].isspace() else "\n"
    before, behind = ids_of(border), ids_of(border + answer)
    return len(asked), asked + (behind[len(before) :] if behind[: len(before)] == before else ids_of(answer))
