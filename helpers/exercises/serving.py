"""Checks for the exercises of 08_serve: answers that were cut, and a second turn. None needs a server."""

from collections.abc import Callable

from helpers.exercises import check, expect, need

from openai.types.chat import ChatCompletion


def response(text: str, reason: str, written: int) -> ChatCompletion:
    """What a client gets from a server that wrote so many tokens and stopped for this reason."""
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 1, "completion_tokens": written, "total_tokens": 1 + written}
    fixed = {"id": "1", "object": "chat.completion", "created": 0, "model": "merged"}
    return ChatCompletion.model_validate(fixed | {"choices": [choice], "usage": usage})


@check
def whole_answers(read: Callable, *, references: list[str], limit: int) -> str:
    """A function that returns the text of a whole answer and None for one that the limit cut."""
    for text in map(str.strip, references):
        for content, reason, written, what in (
            (text, "stop", limit - 1, "a whole answer"),
            (text[:-1], "length", limit, "a cut answer"),
            (text, "stop", limit, f"a whole answer of exactly {limit} tokens, a number that does not tell,"),
            (text, "length", limit, "a cut answer that looks complete"),
        ):
            got, right = read(response(content, reason, written)), content if reason == "stop" else None
            need(got == right, f"for {what}, {content[:60]!r}, it should return {right!r:.60}, and not {got!r:.60}.")
    return "`finish_reason` alone tells. Count how many were cut, too: many mean that the limit is too low."


@check
def second_turn(messages: list[dict], grows_by: float, *, first: list[dict], said: str, tokenizer) -> str:
    """The messages of a second turn, and by how much ``usage.prompt_tokens`` grows over the first."""

    def tokens(messages: list[dict]) -> int:
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])

    memory = "a server keeps nothing between two requests, so the conversation has to begin with the first messages."
    need(messages[: len(first)] == first, memory)
    roles, after = [message["role"] for message in messages], messages[len(first) :]
    order = f"the roles are {', '.join(roles)}. After the first question come the answer to it and one more question."
    need(roles[len(first) :] == ["assistant", "user"], order)
    need(after[0]["content"].strip() == said.strip(), "the assistant's message is not what the server answered.")
    truth = tokens(messages) - tokens(first)
    texts = sum(len(tokenizer(m["content"], add_special_tokens=False)["input_ids"]) for m in after)
    mistakes = {
        tokens(messages): "that is `prompt_tokens` of the second request, and not by how much it grew.",
        texts: "those are the words of both. The template writes who speaks, and where a turn ends.",
    }
    other = f"it is not {grows_by:g}: the answer and the question are both read. Apply the chat template, and count."
    expect(grows_by, truth, other, mistakes)
    template = f"{truth} tokens, {truth - texts} of them of the template"
    return f"{template}. Each turn is read with all turns before it, so a long conversation is mostly reading."
