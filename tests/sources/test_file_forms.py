"""Thirty-six forms of files give the tokens and labels that TRL makes of the same conversations, 20 rows of each."""

import json

from helpers.data import encode, read
from helpers.models import load_base
from helpers.settings import IGNORED, settings_for
from helpers.sources import resolve
from helpers.sources.templates import end_tokens

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

ROWS = range(20)


def talk(*texts: str, system: str = "") -> list[dict]:
    """Question, answer, question, answer, ... as messages."""
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return [{"role": "system", "content": system}] * bool(system) + turns


def q(n: int) -> str:
    return f'How much is {n} x 2, "exactly"?\nSay why.'


def a(n: int) -> str:
    return f"It is {2 * n}: añadimos {n}, 再加 {n} 🙂."


def pair(n: int) -> list[dict]:
    return talk(q(n), a(n))


def two(n: int) -> list[dict]:
    return talk(q(n), a(n), "Sure?", f"Yes, {2 * n}.")


def sharegpt(messages: list[dict]) -> list[dict]:
    names = {"user": "human", "assistant": "gpt"}
    return [{"from": names.get(m["role"], m["role"]), "value": m["content"]} for m in messages]


def llama2(messages: list[dict], between: str = "</s><s>") -> str:
    turns = [
        f"[INST] {u['content']} [/INST] {v['content']} " for u, v in zip(messages[::2], messages[1::2], strict=True)
    ]
    return f"<s>{between.join(turns)}</s>"


FORMS = {  # name of the file: the row that it holds and the conversation that this row means
    "messages.jsonl": lambda n: ({"messages": two(n), "id": f"row {n}"}, two(n)),
    "messages.json": lambda n: ({"messages": two(n), "source": "hand-written"}, two(n)),
    "messages.parquet": lambda n: ({"messages": two(n), "score": n / 7}, two(n)),
    "messages_as_json.csv": lambda n: ({"messages": json.dumps(two(n))}, two(n)),
    "system.jsonl": lambda n: ({"messages": talk(q(n), a(n), system="Be brief.")}, talk(q(n), a(n), system="Be brief.")),
    "system_prompt.jsonl": lambda n: ({"messages": two(n), "system_prompt": "Hi."}, talk(*two_texts(n), system="Hi.")),
    "prompt_repeats.parquet": lambda n: ({"prompt": q(n), "prompt_id": f"{n:x}" * 9, "messages": two(n)}, two(n)),
    "sharegpt.jsonl": lambda n: ({"conversations": sharegpt(two(n))}, two(n)),
    "sharegpt_with_weights.parquet": lambda n: ({"conversations": [t | {"weight": 1.0} for t in sharegpt(two(n))]}, two(n)),
    "sharegpt_roles.jsonl": lambda n: ({"conversations": two(n)}, two(n)),
    "conversation.parquet": lambda n: ({"conversation": two(n), "model": "some-model"}, two(n)),
    "text_parts.jsonl": lambda n: ({"messages": [m | {"content": parts(m["content"])} for m in two(n)]}, two(n)),
    "text_parts.parquet": lambda n: ({"messages": [m | {"content": parts(m["content"])} for m in two(n)]}, two(n)),
    "weights.jsonl": lambda n: ({"messages": weighted(n)}, weighted(n)),
    "weights.parquet": lambda n: ({"messages": weighted(n)}, weighted(n)),
    "trl_conversational.jsonl": lambda n: ({"prompt": pair(n)[:1], "completion": pair(n)[1:]}, pair(n)),
    "trl_longer_prompt.parquet": lambda n: ({"prompt": two(n)[:3], "completion": two(n)[3:]}, only_last(two(n))),
    "trl_standard.csv": lambda n: ({"prompt": q(n), "completion": a(n)}, pair(n)),
    "question.csv": lambda n: ({"": n, "question": q(n), "answer": a(n), "difficulty": "easy"}, pair(n)),
    "empty_system.csv": lambda n: ({"system": "", "question": q(n), "answer": a(n)}, pair(n)),
    "some_system.csv": lambda n: ({"system": "Go." * (n % 2), "query": q(n), "response": a(n)}, talk(*texts(n), system="Go." * (n % 2))),
    "openorca.parquet": lambda n: ({"id": n, "system_prompt": "S.", "question": q(n), "response": a(n)}, talk(*texts(n), system="S.")),
    "alpaca.json": lambda n: ({"instruction": "Double it.", "input": f"{n}", "output": a(n)}, talk(f"Double it.\n\n{n}", a(n))),
    "alpaca_some_input.csv": lambda n: ({"instruction": q(n), "input": "", "output": a(n)}, pair(n)),
    "alpaca_with_text.jsonl": lambda n: ({"instruction": q(n), "output": a(n), "text": f"### Do: {q(n)}\n### {a(n)}"}, pair(n)),
    "dolly.jsonl": lambda n: ({"instruction": "Double?", "context": f"n = {n}", "response": a(n), "category": "closed qa"}, talk(f"Double?\n\nn = {n}", a(n))),
    "history.json": lambda n: ({"history": [list(texts(n))], "instruction": "Sure?", "output": f"Yes, {2 * n}."}, two(n)),
    "math.parquet": lambda n: ({"problem": q(n), "solution": a(n), "answer": f"{2 * n}"}, pair(n)),
    "input_output.jsonl.gz": lambda n: ({"input": q(n), "output": a(n)}, pair(n)),
    "question.jsonl.bz2": lambda n: ({"question": q(n), "answer": a(n)}, pair(n)),
    "messages.jsonl.zst": lambda n: ({"messages": two(n)}, two(n)),
    "question.csv.gz": lambda n: ({"question": q(n), "answer": a(n)}, pair(n)),
    "metamath.json": lambda n: ({"query": q(n), "response": a(n), "original_question": f"{n}?", "type": "GSM_Rephrased"}, pair(n)),
    "llama2.parquet": lambda n: ({"text": llama2(two(n))}, two(n)),
    "llama2_without_ends.jsonl": lambda n: ({"text": llama2(two(n), between="")}, two(n)),
    "llama2_system.csv": lambda n: ({"text": f"<s>[INST] <<SYS>>\nS.\n<</SYS>>\n\n{q(n)} [/INST] {a(n)} </s>"}, talk(*texts(n), system="S.")),
}  # fmt: skip


def texts(n: int) -> tuple[str, str]:
    return q(n), a(n)


def two_texts(n: int) -> list[str]:
    return [m["content"] for m in two(n)]


def parts(text: str) -> list[dict]:
    return [{"type": "text", "text": line} for line in text.split("\n")]


def weighted(n: int) -> list[dict]:
    first, answer, *rest = two(n)
    return [first, answer | {"weight": 0}, *rest]


def only_last(messages: list[dict]) -> list[dict]:
    return [m | {"weight": 0} if m["role"] == "assistant" else m for m in messages[:-1]] + messages[-1:]


def key(messages: list[dict]) -> str:
    return json.dumps([[m["role"], m["content"]] for m in messages])


@pytest.fixture(scope="module")
def llama3(speaks):
    return speaks("llama3")


@pytest.fixture(scope="module")
def by_trl(tmp_path_factory, tiny, llama3):
    """What TRL makes of each conversation, with the loss on the assistant only: tokens and labels."""
    every = {key(meant): meant for form in FORMS.values() for n in ROWS for _, meant in [form(n)]}
    conversations = [[{"role": m["role"], "content": m["content"]} for m in meant] for meant in every.values()]
    folder = str(tmp_path_factory.mktemp("trl"))
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": None, "shuffle_dataset": False}
    trainer = SFTTrainer(
        model=load_base(resolve(tiny), "fp32"),
        args=SFTConfig(folder, assistant_only_loss=True, **options),
        train_dataset=Dataset.from_list([{"messages": messages} for messages in conversations]),
        processing_class=llama3,
    )
    return dict(zip(every, trainer.train_dataset, strict=True))


def without_stretch(labels: list[int], number: int) -> list[int]:
    """The labels without the supervised stretch of this number."""
    starts = [n for n, label in enumerate(labels) if label != IGNORED and (n == 0 or labels[n - 1] == IGNORED)]
    end = next(n for n in range(starts[number], len(labels) + 1) if n == len(labels) or labels[n] == IGNORED)
    return labels[: starts[number]] + [IGNORED] * (end - starts[number]) + labels[end:]


@pytest.mark.parametrize("name", FORMS)
def test_rows_of_each_form_equal_those_of_trl(name, write, llama3, by_trl):
    rows, meant = zip(*(FORMS[name](n) for n in ROWS), strict=True)
    splits, counts, _ = read(settings_for("tiny", data=str(write(name, list(rows)))))
    examples = {key(e.messages): encode(e, llama3) for split in splits.values() for e in split}
    assert (counts["read"], counts["unusable"], counts["repeated"]) == (20, 0, 0)
    assert list(examples) != [] and examples.keys() == set(map(key, meant))
    for conversation in meant:
        expected, made = by_trl[key(conversation)], examples[key(conversation)]
        labels, answers = expected["labels"], [m for m in conversation if m["role"] == "assistant"]
        for number in reversed([n for n, answer in enumerate(answers) if answer.get("weight") == 0]):
            labels = without_stretch(labels, number)
        assert made.input_ids == expected["input_ids"]
        assert made.labels == labels
        assert made.labels[-1] in end_tokens(llama3)


def test_more_than_500_rows_are_compared():
    assert len(FORMS) * len(ROWS) >= 500


def test_a_folder_is_read_file_by_file_and_other_files_are_named(write, llama3, capsys):
    made = [FORMS["sharegpt.jsonl"](n)[0] for n in ROWS]
    for name, part in (("rows/b.jsonl", made[:7]), ("rows/a.json", made[7:12]), ("rows/deep/c.jsonl.gz", made[12:])):
        folder = write(name, part)
    write("rows/README.txt", [])
    write("rows/.ipynb_checkpoints/a-checkpoint.json", made[:3])  # JupyterLab's copy of a file that was opened in it
    splits, counts, _ = read(settings_for("tiny", data=str(folder.parent.parent)))
    examples = [e for split in splits.values() for e in split]
    assert {key(e.messages) for e in examples} == {key(two(n)) for n in ROWS} and counts["read"] == 20
    read_from = {e.where.split("rows/")[1].split(":")[0].split(" ")[0] for e in examples}
    assert read_from == {"a.json", "b.jsonl", "deep/c.jsonl.gz"}
    assert "1 other files are not read, such as README.txt" in capsys.readouterr().out
