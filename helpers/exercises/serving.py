"""Checks for the exercises of 08_serve: answers that were cut, a second turn, a limit for clients. None needs a server."""

from __future__ import annotations

import threading
import time

from helpers.exercises import check, need, number

from openai.types.chat import ChatCompletion

STUCK = 3  # seconds after which a thread is taken to wait for ever


def response(text: str, reason: str, written: int) -> ChatCompletion:
    """What a client gets from a server that wrote so many tokens and stopped for this reason."""
    message = {"role": "assistant", "content": text}
    return ChatCompletion.model_validate({
        "id": "1", "object": "chat.completion", "created": 0, "model": "merged",
        "choices": [{"index": 0, "finish_reason": reason, "message": message}],
        "usage": {"prompt_tokens": 1, "completion_tokens": written, "total_tokens": 1 + written},
    })  # fmt: skip


@check
def whole_answers(read, *, references: list[str], limit: int) -> str:
    """A function that returns the text of a whole answer and None for one that the limit cut."""
    for text in map(str.strip, references):
        said = read(response(text, "stop", limit - 1))
        need(said == text, f"a whole answer, {text[:60]!r}, became {said!r}.")
        cut = text[:-1].strip()
        said = read(response(cut, "length", limit))
        need(
            said != cut,
            f"an answer came through that was cut: it ends in {cut[-30:]!r}, and the model was about to write {text[-30:]!r}. "
            "Who reads a number out of that gets a wrong one, or none, and no error.",
        )
        need(said is None, f"for a cut answer it should return None, and not {said!r}.")
        need(
            read(response(text, "stop", limit)) == text,
            f"an answer of exactly {limit} tokens that ended by itself is whole: the number of tokens does not tell.",
        )
        need(
            read(response(text, "length", limit)) is None,
            "an answer that looks complete can be cut too: the server says so, the text does not.",
        )
    return "`finish_reason` alone tells. Count how many were cut, too: many mean that the limit is too low."


@check
def second_turn(messages, grows_by, *, first: list[dict], said: str, tokenizer) -> str:
    """The messages of a second turn, and by how much ``usage.prompt_tokens`` grows over the first."""

    def tokens(messages: list[dict]) -> int:
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])

    messages = list(messages)
    roles = [m["role"] for m in messages]
    need(
        messages[: len(first)] == first,
        "a server keeps nothing between two requests. The conversation has to begin with the messages of the first one.",
    )
    after = messages[len(first) :]
    need(
        [m["role"] for m in after] == ["assistant", "user"],
        f"the roles are {', '.join(roles)}. After the first question come the answer to it and one more question.",
    )
    need(after[0]["content"].strip() == said.strip(), "what the assistant said is not what the server answered.")
    grown, truth = number(grows_by, "grows_by"), tokens(messages) - tokens(first)
    words = [len(tokenizer(m["content"], add_special_tokens=False)["input_ids"]) for m in after]
    for wrong, otherwise in (
        (tokens(messages), "that is `prompt_tokens` of the second request, and not by how much it grew."),
        (words[0], "those are the tokens of the first answer; the second question is read, too."),
        (words[1], "those are the tokens of the second question; the first answer is read again, too."),
        (sum(words), "those are the words of both. The template writes who speaks, and where a turn ends."),
    ):
        need(grown == truth or grown != wrong, otherwise)
    need(grown == truth, f"it is not {grown:g}. Apply the chat template to both conversations, and count.")
    return (
        f"{truth} tokens, {truth - sum(words)} of them of the template. Each turn is read with all that came before, so a long "
        "conversation is mostly reading."
    )


@check
def limited_clients(limited, *, clients: int = 8, at_once: int = 2) -> str:
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

    asks, answers = limited(ask, at_once), {}
    need(callable(asks), "limited should return a function, to be called as `ask` is.")

    def client(messages) -> None:
        try:
            answers[messages] = asks(messages)
        except Exception as error:
            answers[messages] = error

    def everybody(questions) -> bool:
        """Whether all get an answer, or an error."""
        threads = [threading.Thread(target=client, args=[q], daemon=True) for q in questions]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + STUCK
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in threads)

    questions = [str(n) for n in range(clients)]
    need(
        everybody(questions), f"{clients} clients asked, and after {STUCK} s some still wait. Is each place given back?"
    )
    for question, answer in answers.items():
        if isinstance(answer, Exception):
            raise answer
        need(answer == f"answer to {question}", "a client did not get the answer to its question.")
    need(most <= at_once, f"{most} were on their way at once. Is the semaphore made once, or anew for each request?")
    need(most == at_once, f"only {most} was on its way at a time; {at_once} are allowed.")
    for _ in range(at_once):
        everybody(["fails"])
    need(
        everybody(["1"]),
        f"after {at_once} requests that failed, nobody gets in any more: give the place back in any case.",
    )
    return f"{clients} clients, {at_once} at a time, and a failed request gives its place back."
