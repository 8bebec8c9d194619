"""Rows as conversations: what each column of a data file means.

What carries meaning is used or refused by name. A column that no form uses may pass in four cases: it is empty; it has the
name of metadata (``id``, ``source``, ``prompt_id``, ``created_at``) and is short; it is a number, a date, a hash or an address; or
it repeats the conversation. The answer may depend on anything else, so such a row is refused with the column's name.
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


def to_messages(row: dict) -> tuple[list[dict], list[dict] | None]:
    """One row of any understood form as messages, up to the last answer to learn from, and the tools it may call.

    A message has ``role`` and ``content``, and where the row gives them ``tool_calls``, ``reasoning_content``, ``name``,
    ``tool_call_id`` and ``weight`` 0 for an answer to read and not to learn.

    Raises:
        DataError: for columns, roles or parts that are not understood, and contents that are blank or not text.
    """
    if column := next((c for c in LISTS if row.get(c) not in (None, "")), None):
        messages, used = _listed(row[column], column), {column}
    elif (asked := _chosen(row, QUESTIONS)) and (answered := _chosen(row, ANSWERS)):
        messages, used = _pair(row, asked, answered)
    elif "text" in row:
        messages, used = parse_llama2(row["text"]), {"text"}
    else:
        raise DataError(f"found the columns {', '.join(map(str, row)) or 'none'}; understood are {FORMATS}")
    system = next((column for column in SYSTEM if not is_blank(row.get(column))), None)
    if system and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": _text(row[system], "the system content")})
        used.add(system)
    tools = None if is_blank(row.get("tools")) else _objects(row["tools"], "tools") or None
    _refuse_unused(row, used | {"tools", "original_question"}, messages, "column")
    if broken := re.search("[\ud800-\udfff]", json.dumps([messages, tools], ensure_ascii=False, default=str)):
        raise DataError(f"a text holds half a character ({broken[0]!r}), which is not text", "half a character")
    answers = answers_to_learn(messages)
    if not answers or messages[-1]["role"] != "assistant":
        raise DataError("a conversation must end with an assistant message to learn from, after a user message")
    return messages[: answers[-1] + 1], tools


def _chosen(row: dict, names: tuple[str, ...]) -> str | None:
    """The first of these columns that holds something, or else the first that is there."""
    there = [name for name in names if name in row]
    return next((name for name in there if not is_blank(row[name])), there[0] if there else None)


def _pair(row: dict, asked: str, answered: str) -> tuple[list[dict], set[str]]:
    """A question and its answer, each a text or a list of messages, and the columns used; only the answer is learned."""
    history = [] if is_blank(row.get("history")) else _from_json(row["history"])
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise DataError("history must be a list of pairs of question and answer")
    before = [{"from": name, "value": t} for turn in history for name, t in zip(("human", "gpt"), turn, strict=True)]
    messages, used = list(map(_message, before)), {asked, answered, "history"}
    if _are_turns(row[asked]):
        messages += [m | {"weight": 0} if m["role"] == "assistant" else m for m in _listed(row[asked], asked)]
    else:
        context = [name for name in CONTEXT if name != asked and not is_blank(row.get(name))]
        texts = [_text(row[asked], "the user content"), *(_text(row[name], f"the column {name}") for name in context)]
        messages.append({"role": "user", "content": "\n\n".join(texts)})
        used.update(context)
    if _are_turns(row[answered]):
        return messages + _listed(row[answered], answered), used
    reasoning = next((name for name in REASONING if not is_blank(row.get(name))), "reasoning")
    answer = {"role": "assistant", "content": row[answered], "reasoning_content": row.get(reasoning)}
    return [*messages, _message(answer)], used | {reasoning}


def _from_json(value: object) -> object:
    """A list that a CSV cell or a Parquet column holds as JSON text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return None


def _objects(value: object, what: str, form: str = "") -> list[dict]:
    if not isinstance(value := _from_json(value), list) or not all(isinstance(each, dict) for each in value):
        raise DataError(f"{what} must be a list of objects{form}")
    return value


def _listed(value: object, column: str) -> list[dict]:
    """The turns of a conversation. A system turn that says nothing is no turn."""
    messages = map(_message, _objects(value, column, " with role and content, or from and value"))
    return [message for message in messages if message["role"] != "system" or message["content"]]


def _message(turn: dict) -> dict:
    """One turn of a conversation, checked and under the names that chat templates know."""
    speaker, content = "role" if "role" in turn else "from", "content" if "content" in turn else "value"
    role = ROLES.get(str(turn.get(speaker)))
    if role is None:
        raise DataError(f"unknown role {turn.get(speaker)!r}; allowed are {', '.join(ROLES)}", "unknown role")
    used, message = {speaker, content, "weight"}, {"role": role, "content": turn.get(content)}
    if role == "assistant":
        if not is_blank(turn.get("tool_calls")):
            message["tool_calls"] = [_call(call) for call in _objects(turn["tool_calls"], "tool_calls")]
        if reasoning := next((name for name in REASONING if not is_blank(turn.get(name))), None):
            message["reasoning_content"] = _text(turn[reasoning], "the reasoning")
            used.add(reasoning)
    _refuse_unused(
        turn, used | {*message, "name", "tool_call_id"}, [{"content": str(turn.get(content) or "")}], "turn key"
    )
    says_nothing = is_blank(message["content"]) and (role in ("system", "tool") or "tool_calls" in message)
    message["content"] = "" if says_nothing else _text(message["content"], f"the {role} content")
    message |= {name: turn[name] for name in ("name", "tool_call_id") if not is_blank(turn.get(name))}
    if (weight := turn.get("weight")) not in (None, 0, 1):
        raise DataError(f"the weight of a turn must be 0 or 1, not {weight!r}", "the weight of a turn")
    message |= {"weight": 0} if weight == 0 and role == "assistant" else {}
    return message


def _call(call: dict) -> dict:
    """A tool call as chat templates read it: a function with its name and its arguments as an object."""
    function = call.get("function", call)
    arguments = _from_json(function.get("arguments") or {}) if isinstance(function, dict) else None
    if not isinstance(arguments, dict) or not isinstance(function.get("name"), str):
        raise DataError("a tool call must hold a function with a name and arguments, an object or one as JSON text")
    _refuse_unused(call | function, {"function", "name", "arguments"}, [], "tool call key")
    known = {"id": call["id"]} if "id" in call else {}
    return known | {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _are_turns(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in value)


def _text(value: object, what: str) -> str:
    """The text of a content, given as text or as a list of text parts, without white space around it."""
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        other = next((p for p in value if p.get("type", "text") != "text" or not isinstance(p.get("text"), str)), None)
        if other is not None:
            raise DataError(f"{what} holds a part of the type {other.get('type')!r}; only text is read")
        value = "\n".join(part["text"] for part in value)
    if value is None:
        raise DataError(f"{what} is null, not text")
    if not isinstance(value, str):
        raise DataError(f"{what} is {repr(value)[:60]} ({type(value).__name__}), not text", f"{what} is not text")
    if is_blank(value):
        raise DataError(f"{what} is blank: {value[:20]!r}", f"{what} is blank")
    return value.strip()


def is_blank(value: object) -> bool:
    """Whether a value holds nothing: None, an empty list, or a text without a single visible character."""
    if not isinstance(value, str):
        return value is None or value in ([], {})
    fillers = "\u115f\u1160\u2800\u3164\uffa0"  # letters that show nothing
    return not any(unicodedata.category(c)[0] not in "CZM" and c not in fillers for c in value)


def _refuse_unused(row: dict, used: set[str], messages: list[dict], what: str) -> None:
    """Refuse what no form uses, unless it cannot carry meaning (see the top of this module)."""
    text = "\n".join(message["content"] for message in messages)
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
    """The positions of the supervised answers: those after a question whose ``weight`` is not 0.

    A greeting before the first question is read and not learned, since nothing asks for it.
    """
    first = next((n for n, message in enumerate(messages) if message["role"] == "user"), len(messages))
    found = [n for n, message in enumerate(messages) if message["role"] == "assistant" and message.get("weight") != 0]
    return [n for n in found if n > first]


def parse_llama2(text: object) -> list[dict]:
    """``<s>[INST] question [/INST] answer </s>`` and its repetitions as messages, special tokens removed.

    Raises:
        DataError: for text without that structure, which has no question and answer to tell apart.
    """
    before, *turns = _text(text, "the text").split("[INST]")
    if not turns or before.replace("<s>", "").strip():
        raise DataError(f"this text has no [INST] question [/INST] answer; understood are {FORMATS}")
    messages: list[dict] = []
    for turn in turns:
        question, mark, rest = turn.partition("[/INST]")
        answer, _, after = rest.partition("</s>")
        if not messages and question.lstrip().startswith("<<SYS>>") and "<</SYS>>" in question:
            system, _, question = question.strip().removeprefix("<<SYS>>").partition("<</SYS>>")
            messages += _listed([{"role": "system", "content": system}], "text")
        if not mark or "[/INST]" in rest or "SYS>>" in question or re.sub("</?s>", "", after).strip():
            raise DataError("this text breaks the order [INST] question [/INST] answer </s>")
        answer = re.sub("<s>$", "", answer.rstrip())
        messages += [
            _message({"role": "user", "content": question}),
            _message({"role": "assistant", "content": answer}),
        ]
    return messages
