"""Tokenizers that write as models of several families do: the tiny tokenizer with the chat templates that TRL brings along."""

import json
from pathlib import Path

from helpers.sources import LLAMA2_TEMPLATE, resolve

import pandas
import pytest
import trl
from transformers import AutoTokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
MARKS = {  # control tokens of the templates that the tests use
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "llama3_2": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma": ["<bos>", "<start_of_turn>", "<end_of_turn>"],
    "phi3": ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"],
    "qwen2_5": ["<|im_start|>", "<|im_end|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "cohere": [
        "<BOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
    ],
    "gptoss": ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"],
    "glm4moe": ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
    "deepseek_r1_distill": ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"],
}


@pytest.fixture(scope="session")
def speaks(tiny):
    """The tiny tokenizer with the chat template of a family ("llama2" for our own), its marks being single tokens."""

    def make(family: str):
        tokenizer = AutoTokenizer.from_pretrained(resolve(tiny).folder)
        if family == "llama2":
            tokenizer.chat_template = LLAMA2_TEMPLATE
        else:
            tokenizer.chat_template = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
            tokenizer.add_special_tokens({"additional_special_tokens": MARKS[family]})
        return tokenizer

    return make


@pytest.fixture
def write(tmp_path):
    """Write rows as a file whose kind its name says, and return its path."""

    def make(name: str, rows: list[dict]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        frame = pandas.DataFrame(rows)
        if ".csv" in name:
            frame.to_csv(path, index=False)
        elif ".parquet" in name:
            frame.to_parquet(path)
        elif name.endswith(".json"):
            path.write_text(json.dumps(rows))
        else:
            lines = "\n".join(map(json.dumps, rows)).encode()
            path.write_bytes(COMPRESS.get(path.suffix, bytes)(lines))
        return path

    return make


def _zstd(data: bytes) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def _gzip(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data)


def _bz2(data: bytes) -> bytes:
    import bz2

    return bz2.compress(data)


COMPRESS = {".gz": _gzip, ".bz2": _bz2, ".zst": _zstd}
