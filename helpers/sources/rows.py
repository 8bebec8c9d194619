"""Rows as conversations: what each column of a data file means.

What carries meaning is used or refused by name, since the answer may depend on it. A column that no form uses may pass if it
is empty, is metadata by its name or its value, or repeats the conversation.
"""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import date
from numbers import Number

ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"human": "user", "gpt": "assistant"}
LISTS = ("messages", "conversations", "conversation")
QUESTIONS = ("prompt", "question", "query", "instruction", "problem", "input")
ANSWERS = ("completion", "response", "output", "solution", "answer")
CONTEXT = ("input", "context")  # what a question is about, written below it
SYSTEM = ("system", "system_prompt")
REASONING = ("reasoning_content", "reasoning", "thinking")
FORMATS = (
    "messages or conversations (a list of turns with role and content, or from and value), a question "
    f"({', '.join(QUESTIONS)}) with an answer ({', '.join(ANSWERS)}), or text in Llama 2's form"
)
_METADATA = re.compile(  # the last word of a name such as prompt_id, createdAt or model_name
    "ids?|idx|index|uuid|hash|sha256|md5|ur[il]|link|source|origin|dataset|subset|split|category|categories|type|tags?|license|at"
    "|author|annotator|model|date|time|timestamp|version|scores?|rating|quality|difficulty|length|count|tokens|turns|meta(data)?"
)
_IDENTIFIER = re.compile(r"[\d.,:/+ -]+|[\da-fA-F-]{8,}|https?://\S+")  # a number, date or time, a hash, an address
_MEANING = re.compile("labels?|weight|loss|masked|mask|train")  # where a number would say whether to learn from the row


class DataError(ValueError):
    """Data that cannot be used; the message names the place, the fault and what to do.

    ``kind`` is the same for all rows with the same fault, whatever their values; ``where`` is file and line.
    """

    def __init__(self, fault: str, kind: str = "", where: str = ""):
        super().__init__(f"{where}: {fault}" if where else fault)
        self.fault, self.kind, self.where = fault, kind or fault, where

    def at(self, where: str) -> DataError:
        """The same fault with its place."""
        return type(self)(self.fault, self.kind, where)


def to_messages(row: object) -> tuple[list[dict], list[dict] | None]:
    """One row of any understood form as messages, up to the last answer to learn from, and the tools it may call.

    A message has ``role`` and ``content``, and where the row gives them ``tool_calls``, ``reasoning_content``, ``name``,
    ``tool_call_id`` and ``weight`` 0 for an answer to read and not to learn.

    Raises:
        DataError: for columns, roles or parts that are not understood, and contents that are blank or not text.
    """
    if not isinstance(row, dict):
        raise row if isinstance(row, DataError) else DataError("a row must be one JSON object")
    if column := next((name for name in LISTS if row.get(name) not in (None, "")), None):
        turns, used = _objects(row[column], column), {column}
    elif (asked := _first(row, QUESTIONS)) and (answered := _first(row, ANSWERS)):
        turns, used = _pair(row, asked, answered)
    elif "text" in row:
        turns, used = parse_llama2(row["text"]), {"text"}
    else:
        raise DataError(f"found the columns {', '.join(map(str, row)) or 'none'}; understood are {FORMATS}")
    messages = _messages(turns)
    system = _first(row, SYSTEM)
    if not is_blank(row.get(system)) and messages and messages[0]["role"] != "system":
        messages = _messages([{"role": "system", "content": row[system]}, *messages])
        used.add(system)
    tools = None if is_blank(row.get("tools")) else _objects(row["tools"], "tools") or None
    contents = "\n".join(message["content"] for message in messages)
    _refuse_unused(row, used | {"tools", "original_question"}, contents, "column")
    if broken := re.search("[\ud800-\udfff]", json.dumps([messages, tools], ensure_ascii=False, default=str)):
        raise DataError(f"a text holds half a character ({broken[0]!r}), which is not text", "half a character")
    answers = answers_to_learn(messages)
    if not answers or messages[-1]["role"] != "assistant":
        raise DataError("a conversation must end with an assistant message to learn from, after a user message")
    return messages[: answers[-1] + 1], tools


def _first(row: dict, names: tuple[str, ...]) -> str | None:
    """The first of these columns or keys that holds something, or else the first that is there."""
    there = [name for name in names if name in row]
    return next((name for name in there if not is_blank(row[name])), there[0] if there else None)


def _pair(row: dict, asked: str, answered: str) -> tuple[list[dict], set[str]]:
    """The turns of a question and its answer, each a text or a list of turns, and the columns used; only the answer is learned."""
    history = [] if is_blank(row.get("history")) else _from_json(row["history"])
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise DataError("history must be a list of pairs of question and answer")
    turns = [
        {"from": name, "value": text} for each in history for name, text in zip(("human", "gpt"), each, strict=True)
    ]
    used = {asked, answered, "history"}
    if _are_turns(row[asked]):
        turns += [turn | {"weight": 0} for turn in _objects(row[asked], asked)]
    else:
        context = [name for name in CONTEXT if name != asked and not is_blank(row.get(name))]
        used.update(context)
        texts = [_text(row[asked], "the user content"), *(_text(row[name], f"the column {name}") for name in context)]
        turns.append({"role": "user", "content": "\n\n".join(texts)})
    if _are_turns(row[answered]):
        return turns + _objects(row[answered], answered), used
    reasoning = {name: row[name] for name in REASONING if name in row}
    return [*turns, {"role": "assistant", "content": row[answered]} | reasoning], used | {*reasoning}


def _from_json(value: object) -> object:
    """A list that a CSV cell or a Parquet column holds as JSON text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _objects(value: object, what: str) -> list[dict]:
    if not isinstance(value := _from_json(value), list) or not all(isinstance(each, dict) for each in value):
        raise DataError(f"{what} must be a list of objects{' with role and content' if what in LISTS else ''}")
    return value


def _messages(turns: list[dict]) -> list[dict]:
    """The turns of a conversation, checked. A system turn that says nothing is no turn."""
    return [message for message in map(_message, turns) if message["role"] != "system" or message["content"]]


def _message(turn: dict) -> dict:
    """One turn of a conversation, checked and under the names that chat templates know."""
    speaker, content = "role" if "role" in turn else "from", "content" if "content" in turn else "value"
    role, said, weight = ROLES.get(str(turn.get(speaker))), turn.get(content), turn.get("weight")
    if role is None:
        raise DataError(f"unknown role {turn.get(speaker)!r}; allowed are {', '.join(ROLES)}", "unknown role")
    if weight not in (None, 0, 1):
        raise DataError(f"the weight of a turn must be 0 or 1, not {weight!r}", "the weight of a turn")
    message, used = {"role": role, "content": said}, {speaker, content, "weight", "name", "tool_call_id"}
    if role == "assistant":
        if not is_blank(turn.get("tool_calls")):
            message["tool_calls"] = [_call(call) for call in _objects(turn["tool_calls"], "tool_calls")]
        reasoning = _first(turn, REASONING)
        if not is_blank(turn.get(reasoning)):
            message["reasoning_content"] = _text(turn[reasoning], "the reasoning")
            used.add(reasoning)
    _refuse_unused(turn, used | message.keys(), str(said or ""), "turn key")
    says_nothing = is_blank(said) and (role in ("system", "tool") or "tool_calls" in message)
    message["content"] = "" if says_nothing else _text(said, f"the {role} content")
    message |= {name: turn[name] for name in ("name", "tool_call_id") if not is_blank(turn.get(name))}
    return message | ({"weight": 0} if weight == 0 and role == "assistant" else {})


def _call(call: dict) -> dict:
    """A tool call as chat templates read it: a function with its name and its arguments as an object."""
    function = call.get("function", call)
    arguments = _from_json(function.get("arguments") or {}) if isinstance(function, dict) else None
    if not isinstance(arguments, dict) or not isinstance(function.get("name"), str):
        raise DataError("a tool call must hold a function with a name and arguments, an object or one as JSON text")
    _refuse_unused(call | function, {"function", "name", "arguments"}, "", "tool call key")
    known = {"id": call["id"]} if "id" in call else {}
    return known | {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _are_turns(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in value)


def _text(value: object, what: str) -> str:
    """The text of a content, given as text or as a list of text parts, without white space around it."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        if other := [p for p in value if p.get("type", "text") != "text" or not isinstance(p.get("text"), str)]:
            raise DataError(f"{what} holds a part of the type {other[0].get('type')!r}; only text is read")
        value = "\n".join(part["text"] for part in value)
    if not isinstance(value, str):
        shown = "null" if value is None else repr(value)[:60]
        raise DataError(f"{what} is {shown}, not text", f"{what} is not text")
    if is_blank(value):
        raise DataError(f"{what} is blank: {value[:20]!r}", f"{what} is blank")
    return value.strip()


def is_blank(value: object) -> bool:
    """Whether a value holds nothing: None, an empty list, or a text without a single visible character."""
    if not isinstance(value, str):
        return value is None or value in ([], {})
    fillers = "\u115f\u1160\u2800\u3164\uffa0"  # letters that show nothing
    return not any(unicodedata.category(c)[0] not in "CZM" and c not in fillers for c in value)


def _refuse_unused(row: dict, used: set[str], text: str, what: str) -> None:
    """Refuse what no form uses, unless it cannot carry meaning (see the top of this module)."""
    for name, value in row.items():
        if name not in used and not (is_blank(value) or _is_metadata(str(name), value)):
            read = [str(row[other]).strip() for other in used if not is_blank(row.get(other))]
            if not isinstance(value, str) or not (_within(value.strip(), text) or all(each in value for each in read)):
                fault = f"the {what} {name!r} is not used and may carry meaning"
                remedy = "remove it, or put what the model should read into the question"
                raise DataError(f"{fault} ({repr(value)[:40]}): {remedy}", fault)


def _within(value: str, text: str) -> bool:
    """Whether a text holds a value, as words of its own where it is short."""
    return value in text and (len(value) > 40 or bool(re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)))


def _is_metadata(name: str, value: object) -> bool:
    word = re.split("[_ -]", re.sub("([a-z])([A-Z])", r"\1_\2", name).lower().removesuffix("_name"))[-1]
    if _MEANING.fullmatch(word):
        return word == "weight" and value in (1, "1")
    if isinstance(value, str):
        known = _METADATA.fullmatch(word) and (len(value) <= 80 or " " not in value)
        return bool(known or _IDENTIFIER.fullmatch(value.strip()))
    return bool(_METADATA.fullmatch(word)) or isinstance(value, Number | date)


def answers_to_learn(messages: list[dict]) -> list[int]:
    """The positions of the answers to learn: those after the first question whose ``weight`` is not 0."""
    roles = [message["role"] for message in messages]
    first = roles.index("user") if "user" in roles else len(roles)
    return [n for n, role in enumerate(roles) if role == "assistant" and n > first and messages[n].get("weight") != 0]


def parse_llama2(text: object) -> list[dict]:
    """``<s>[INST] question [/INST] answer </s>`` and its repetitions as messages, special tokens removed."""
    before, *parts = _text(text, "the text").split("[INST]")
    if not parts or before.replace("<s>", "").strip():
        raise DataError(f"this text has no [INST] question [/INST] answer; understood are {FORMATS}")
    turns: list[dict] = []
    for part in parts:
        question, mark, rest = part.partition("[/INST]")
        answer, _, after = rest.partition("</s>")
        if not turns and question.lstrip().startswith("<<SYS>>") and "<</SYS>>" in question:
            system, _, question = question.strip().removeprefix("<<SYS>>").partition("<</SYS>>")
            turns.append({"role": "system", "content": system})
        if not mark or "[/INST]" in rest or "SYS>>" in question or re.sub("</?s>", "", after).strip():
            raise DataError("this text breaks the order [INST] question [/INST] answer </s>")
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer.rstrip().removesuffix("<s>")})
    return _messages(turns)
