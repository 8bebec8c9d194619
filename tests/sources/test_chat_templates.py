"""Labels follow the chat template: ends of turns, tools, reasoning, roles, dates; what it loses or twists is refused."""

import json

from helpers.data import Example, encode, encode_answers
from helpers.settings import IGNORED
from helpers.sources import DataError, ModelError, templates
from helpers.sources.templates import RewritesEarlierTurns, end_tokens, render
from tests.sources.conftest import TEMPLATES

import pytest

U, A = {"role": "user", "content": "How much is it?"}, {"role": "assistant", "content": "It is six."}
TWO = [U, A, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes, six."}]
S = {"role": "system", "content": "Be brief."}


def learned(messages, tokenizer, tools=None) -> str:
    """The supervised tokens of a conversation as text."""
    example = encode(Example(messages, tools=tools), tokenizer)
    assert all(label in (IGNORED, token) for label, token in zip(example.labels, example.input_ids, strict=True))
    return tokenizer.decode([label for label in example.labels if label != IGNORED])


ENDS = {
    "llama2": "</s>", "llama3": "<|eot_id|>", "llama3_2": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>",
    "qwen2_5": "<|im_end|>", "qwen3": "<|im_end|>", "cohere": "<|END_OF_TURN_TOKEN|>", "gptoss": "<|return|> <|call|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>", "glm4moe": "",
}  # fmt: skip


@pytest.mark.parametrize("family", ENDS)
def test_the_tokens_that_end_a_turn_come_from_the_template(speaks, family):
    tokenizer = speaks(family)
    assert tokenizer.convert_ids_to_tokens(sorted(end_tokens(tokenizer))) == ENDS[family].split()


@pytest.mark.parametrize("family", ["llama3", "llama3_2", "gemma", "phi3", "qwen2_5", "cohere"])
def test_each_answer_is_supervised_to_its_end_and_nothing_else(speaks, family):
    tokenizer = speaks(family)
    assert "".join(learned(TWO, tokenizer).split()) == f"Itissix.{ENDS[family]}Yes,six.{ENDS[family]}"
    assert "".join(learned([U, A | {"weight": 0}, *TWO[2:]], tokenizer).split()) == f"Yes,six.{ENDS[family]}"


BORDER = (  # asks with "assistant: ", whose space and the first word of an answer would be one token
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
)


@pytest.mark.parametrize(
    "family", ["llama3", "gemma", "phi3", "qwen2_5", "qwen3", "gptoss", "a token across the border"]
)
def test_a_row_begins_with_exactly_the_tokens_that_the_model_is_asked_with(speaks, family):
    tokenizer = speaks("qwen2_5" if family.startswith("a token") else family)
    if family.startswith("a token"):
        tokenizer.chat_template = BORDER
    talk = [*TWO[:3], {"role": "assistant", "content": "The answer is six."}]
    row = encode_answers(Example(talk), tokenizer)[-1]
    texts = [render(tokenizer, talk[:3], answer_next=True), render(tokenizer, talk)]
    asked, whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert (whole[: len(asked)] != asked) == family.startswith("a token")
    assert row.input_ids[: len(asked)] == asked and tokenizer.decode(row.input_ids) == tokenizer.decode(whole)
    assert row.labels[len(asked) - 1] == IGNORED and row.labels[len(asked)] == row.input_ids[len(asked)]


def test_a_template_that_changes_on_the_same_tokenizer_is_looked_at_again(speaks):
    tokenizer = speaks("qwen2_5")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ':' + m.content + '</s>' }}{% endfor %}"
    assert tokenizer.convert_ids_to_tokens(list(end_tokens(tokenizer))) == ["</s>"]


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}]}  # fmt: skip
RESULT = {"role": "tool", "name": "weather", "content": '{"sky": "grey"}'}
STEPS = [U, CALL | {"reasoning_content": "I look."}, RESULT, A | {"reasoning_content": "Now I know."}]


@pytest.mark.parametrize("messages", [STEPS, [S, *STEPS], [U, A | {"reasoning_content": "Hm.\nYes."}]])
def test_calls_and_reasoning_are_supervised_as_trl_does_and_results_are_not(speaks, messages):
    """Against TRL's training version of Qwen3's template, which also supervises the line break behind the end token."""
    tokenizer, theirs = speaks("qwen3"), (TEMPLATES / "qwen3_training.jinja").read_text()
    made = encode(Example(messages, tools=TOOLS), tokenizer)
    expected = tokenizer.apply_chat_template(
        messages, tools=TOOLS, chat_template=theirs, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, masks, end = expected["input_ids"], expected["assistant_masks"], tokenizer.convert_tokens_to_ids("<|im_end|>")
    inside = [mask and before != end for before, mask in zip([None, *ids], masks, strict=False)]
    assert made.input_ids == ids
    assert made.labels == [token if mask else IGNORED for token, mask in zip(ids, inside, strict=True)]
    said = learned(messages, tokenizer, TOOLS)
    assert "grey" not in said and "Be brief" not in said and "How much" not in said
    assert said.count("<|im_end|>") == said.count("<think>") == sum(m["role"] == "assistant" for m in messages)


def test_a_call_and_the_answer_after_its_result_are_both_learned_without_reasoning(speaks):
    rows = encode_answers(Example([U, CALL, RESULT, A], tools=TOOLS), speaks("qwen3"))
    said = [speaks("qwen3").decode([x for x in row.labels if x != IGNORED]) for row in rows]
    assert len(said) == 2 and "Ulm" in said[0] and "It is six." in said[1] and "grey" not in "".join(said)
    assert learned([U, CALL, RESULT, A], speaks("qwen2_5"), TOOLS).count("<|im_end|>") == 2


def test_each_end_of_gpt_oss_is_supervised(speaks):
    tokenizer = speaks("gptoss")
    assert learned([U, CALL], tokenizer, TOOLS).endswith('{"city": "Ulm"}<|call|>')
    said = learned([U, A | {"reasoning_content": "Hm."}], tokenizer)
    assert said.endswith("<|return|>") and said.index("Hm.") < said.index("<|end|>") < said.index("It is")


@pytest.mark.parametrize("family", ["qwen3", "gptoss"])
def test_a_template_that_rewrites_earlier_turns_gives_one_row_for_each_answer(speaks, family):
    tokenizer = speaks(family)
    with pytest.raises(RewritesEarlierTurns, match="f:1: the chat template rewrites earlier turns"):
        encode(Example(TWO, where="f:1"), tokenizer)
    thought = [TWO[0], TWO[1] | {"reasoning_content": "Three twice."}, *TWO[2:]]
    first, second = encode_answers(Example(thought, "sums", where="f:1", tools=TOOLS), tokenizer)
    assert (first.messages, first.family, first.tools) == (thought[:2], "sums", TOOLS)
    assert second.prompt[1]["weight"] == 0 and second.reference == "Yes, six."
    assert "Three twice." in tokenizer.decode([x for x in first.labels if x != IGNORED])
    assert "Three twice." not in tokenizer.decode(second.input_ids)  # as when the model is asked the second question
    for row, end in ((first, "It is six."), (second, "Yes, six.")):
        said = tokenizer.decode([x for x in row.labels if x != IGNORED])
        assert end in said and said.count(ENDS[family].split()[0]) == 1
    assert len(encode_answers(Example(TWO), speaks("qwen2_5"))) == 1


@pytest.mark.parametrize(
    ("family", "messages", "tools", "words"),
    [
        ("llama2", [U, CALL], None, "leaves out the tool_calls of the assistant"),
        ("llama2", [U, A], TOOLS, "leaves out the tools"),
        ("llama3", [U, A | {"reasoning_content": "Hm."}], None, "leaves out the reasoning_content of the assistant"),
        ("llama3_2", [U, CALL | {"content": "Let me look."}], TOOLS, "leaves out the assistant content"),
        ("phi3", [U, CALL, RESULT, A], None, "leaves out the tool"),
        ("qwen2_5", [U | {"name": "Ann"}, A], None, "leaves out the name of the user"),
        ("deepseek_r1_distill", [U, A | {"content": "<think>Hm.</think>It is six."}], None, "leaves out the assistant content"),
        ("deepseek_r1_distill", [U, A], None, "asks for an answer with '｜Assistant｜><think>\\n' and then writes"),
        ("glm4moe", [U, A], None, "does not end an answer with a token of its own, so the model would never learn to stop"),
        ("gemma", [S, U, A], None, "refuses it: System role not supported"),
        ("gemma", [U, U, A], None, "refuses it: Conversation roles must alternate"),
    ],
)  # fmt: skip
def test_what_a_template_would_lose_or_twist_is_refused_with_its_place(speaks, family, messages, tools, words):
    with pytest.raises(DataError) as error:
        encode(Example(messages, where="f:3", tools=tools), speaks(family))
    assert str(error.value).startswith("f:3: ") and words in str(error.value)


ORDERS = {
    "answer first": ([A, *TWO], "Yes"),
    "system in the middle": ([*TWO[:2], S, *TWO[2:]], "Yes"),
    "two questions": ([U, U, A], "It is"),
    "two answers": ([U, A, A], "It is"),
    "a tool result": ([U, A, RESULT, A], "It is"),
    "a marker in a question": ([U | {"content": "[INST] a [/INST]"}, A], "It is"),
    "a marker in an answer": ([U, A | {"content": "b [INST] c"}, *TWO[2:]], "Yes"),
    "a marker in the system": ([S | {"content": "<<SYS>>"}, U, A], "It is"),
}


@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_roles_are_rendered_right_or_refused(speaks, order):
    """As Meta's own code for Llama 2 does, our template refuses them; ChatML writes them, and a greeting is only read."""
    messages, end = ORDERS[order]
    with pytest.raises(
        DataError, match="f:1: the chat template of this model refuses it: (after the system|a text holds)"
    ):
        encode(Example(messages, where="f:1"), speaks("llama2"))
    chat = speaks("qwen2_5")
    said = learned(messages, chat)
    answers = sum(m["role"] == "assistant" for m in messages) - (order == "answer first")
    assert end in said and said.count("<|im_end|>") == answers and "<|im_start|>" not in said and "Sure?" not in said
    assert "Be brief" not in said and "grey" not in said


def test_special_tokens_inside_a_text_are_refused_wherever_they_stand(speaks):
    tokenizer = speaks("qwen3")
    inside = [
        [U | {"content": "a<|im_end|>"}, A], [U, A | {"content": "</s>"}], [U, A | {"reasoning_content": "<|im_start|>"}],
        [U, CALL, RESULT | {"content": "<s>"}, A],
        [U, {**CALL, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": ["<pad>"]}}}]}],
    ]  # fmt: skip
    for messages in inside:
        with pytest.raises(DataError, match="f:2: a text holds '<.*>', which this model reads as a command"):
            encode(Example(messages, where="f:2", tools=TOOLS), tokenizer)


def test_rows_do_not_change_at_midnight(speaks, monkeypatch):
    tokenizer, seen = speaks("llama3_2"), set()
    for day in (1, 2):
        today = type("datetime", (), {"now": lambda day=day: templates.date(2031, 5, day)})
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", today)
        assert f"0{day} May 2031" in tokenizer.apply_chat_template([U, A], tokenize=False)
        seen.add(json.dumps(encode(Example([U, A]), tokenizer).input_ids))
    assert len(seen) == 1 and "Today Date: 26 Jul 2024" in render(tokenizer, [U])
    tokenizer.chat_template = "{% set f = '%d' %}{{ strftime_now(f) }}"
    with pytest.raises(DataError, match="in a form that cannot be replaced"):
        render(tokenizer, [U])


def test_an_endless_template_ends_with_a_sentence_and_not_once_a_row(speaks, monkeypatch):
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    tokenizer = speaks("qwen2_5")
    tokenizer.chat_template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match="did not finish one conversation in 0.2 seconds: use another template"):
        encode_answers(Example(TWO), tokenizer)


@pytest.mark.parametrize(
    "body", ["{{ 1 / 0 }}", "{{ messages[9].content }}", "{% if %}", "{{ range(10 ** 9) | list }}"]
)
def test_a_template_that_fails_ends_with_a_sentence(speaks, body):
    tokenizer = speaks("qwen2_5")
    tokenizer.chat_template = body
    with pytest.raises(DataError, match="f:1: the chat template of this model refuses it: "):
        encode(Example([U, A], where="f:1"), tokenizer)
