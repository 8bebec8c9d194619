"""Checks for the exercises of 08_serve: answers that were cut, a second turn, a limit for clients. None needs a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from helpers.exercises import check, need, unlike

from openai.types.chat import ChatCompletion

STUCK = 3  # seconds after which a thread is taken to wait for ever


def response(text: str, reason: str, written: int) -> ChatCompletion:
    """What a client gets from a server that wrote so many tokens and stopped for this reason."""
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 1, "completion_tokens": written, "total_tokens": 1 + written}
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "merged",
        "choices": [choice],
        "usage": usage,
    }
    return ChatCompletion.model_validate(answer)


@check
def whole_answers(read: Callable, *, references: list[str], limit: int) -> str:
    """A function that returns the text of a whole answer and None for one that the limit cut."""
    for text in map(str.strip, references):
        got = read(response(text, "stop", limit - 1))
        need(got == text, f"a whole answer, {text[:60]!r}, became {got!r}.")
        cut = text[:-1].strip()
        got = read(response(cut, "length", limit))
        through = (
            f"a cut answer came through: it ends in {cut[-30:]!r}, where the model was about to write {text[-30:]!r}."
        )
        need(got != cut, f"{through} A number read out of it is wrong or missing, without an error.")
        need(got is None, f"for a cut answer it should return None, and not {got!r}.")
        full = f"an answer of exactly {limit} tokens that ended by itself is whole: the number of tokens does not tell."
        need(read(response(text, "stop", limit)) == text, full)
        complete = "an answer that looks complete can be cut too: the server says so, the text does not."
        need(read(response(text, "length", limit)) is None, complete)
    return "`finish_reason` alone tells. Count how many were cut, too: many mean that the limit is too low."


@check
def second_turn(messages: list[dict], grows_by: float, *, first: list[dict], said: str, tokenizer) -> str:
    """The messages of a second turn, and by how much ``usage.prompt_tokens`` grows over the first."""

    def tokens(messages: list[dict]) -> int:
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])

    memory = "a server keeps nothing between two requests, so the conversation has to begin with the messages of the first one."
    need(messages[: len(first)] == first, memory)
    roles, after = [message["role"] for message in messages], messages[len(first) :]
    order = f"the roles are {', '.join(roles)}. After the first question come the answer to it and one more question."
    need(roles[len(first) :] == ["assistant", "user"], order)
    need(after[0]["content"].strip() == said.strip(), "what the assistant said is not what the server answered.")
    truth = tokens(messages) - tokens(first)
    answer, question = (len(tokenizer(m["content"], add_special_tokens=False)["input_ids"]) for m in after)
    unlike(
        grows_by,
        truth,
        (tokens(messages), "that is `prompt_tokens` of the second request, and not by how much it grew."),
        (answer, "those are the tokens of the first answer; the second question is read, too."),
        (question, "those are the tokens of the second question; the first answer is read again, too."),
        (answer + question, "those are the words of both. The template writes who speaks, and where a turn ends."),
    )
    need(grows_by == truth, f"it is not {grows_by:g}. Apply the chat template to both conversations, and count.")
    return (
        f"{truth} tokens, {truth - answer - question} of them of the template. Each turn is read with all that came before, "
        "so a long conversation is mostly reading."
    )


@check
def limited_clients(limited: Callable, *, clients: int = 8, at_once: int = 2) -> str:
    """``limited(ask, at_once)``: a function that asks, and lets at most so many requests be on their way at a time."""
    lock, enough, inside, most = threading.Lock(), threading.Event(), 0, 0

    def ask(messages):
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            if inside >= at_once:
                enough.set()
        if not enough.wait(0.5):  # the others are kept out
            enough.set()
        time.sleep(0.05)  # time for one too many to come in
        with lock:
            inside -= 1
        if messages == "fails":
            raise ConnectionError("the server is gone")
        return f"answer to {messages}"

    limited_ask, answers = limited(ask, at_once), {}
    need(callable(limited_ask), "limited should return a function, to be called as `ask` is.")
    waiting = f"{clients} clients asked, and after {STUCK} s some still wait. Is each place given back?"
    need(_all_answered(limited_ask, [str(n) for n in range(clients)], answers), waiting)
    for question, answer in answers.items():
        if isinstance(answer, Exception):
            raise answer
        need(answer == f"answer to {question}", "a client did not get the answer to its question.")
    need(most <= at_once, f"{most} were on their way at once. Is the semaphore made once, or anew for each request?")
    need(most == at_once, f"only {most} was on its way at a time; {at_once} are allowed.")
    for _ in range(at_once):
        _all_answered(limited_ask, ["fails"], {})
    blocked = f"after {at_once} requests that failed, nobody gets in any more: give the place back in any case."
    need(_all_answered(limited_ask, ["1"], {}), blocked)
    return f"{clients} clients, {at_once} at a time, and a failed request gives its place back."


def _all_answered(ask: Callable, questions: list[str], answers: dict) -> bool:
    """Ask all questions at once and collect the answers, or errors; whether every thread came back."""

    def client(question: str) -> None:
        try:
            answers[question] = ask(question)
        except Exception as error:
            answers[question] = error

    threads = [threading.Thread(target=client, args=[question], daemon=True) for question in questions]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + STUCK
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    return not any(thread.is_alive() for thread in threads)
