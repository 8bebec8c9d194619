"""A model stops at the token that ends its turn, whichever that is, and is asked with the tools of the row."""

from helpers.data import Example
from helpers.evaluation import answers
from helpers.inference import generate, stream
from helpers.models import load_base
from helpers.sources import resolve

import pytest
import torch

ASKED = [{"role": "user", "content": "How much?"}]


@pytest.fixture
def scripted(tiny):
    """A tiny model that says given tokens, whatever it is asked; ``said`` counts them, ``read`` keeps its prompts."""

    def make(tokenizer, *texts: str):
        model = load_base(resolve(tiny), "fp32")
        model.resize_token_embeddings(len(tokenizer))
        script = [i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
        model.said, model.read, usual = 0, [], model.generate

        def head(hidden: torch.Tensor) -> torch.Tensor:
            scores = torch.full((*hidden.shape[:2], len(tokenizer)), -1.0)
            scores[..., script[model.said]] = 1.0
            model.said += 1
            return scores

        def generate(**options):
            model.read.append(tokenizer.decode(options["input_ids"][0]))
            return usual(**options)

        model.lm_head.forward, model.generate = head, generate
        return model

    return make


@pytest.mark.parametrize(
    ("family", "end"),
    [
        ("llama2", "</s>"),
        ("gemma", "<end_of_turn>"),
        ("phi3", "<|end|>"),
        ("llama3", "<|eot_id|>"),
        ("gptoss", "<|call|>"),
    ],
)
def test_generation_stops_at_the_end_of_the_turn(speaks, scripted, family, end):
    tokenizer = speaks(family)
    length = len(tokenizer("It is six.", add_special_tokens=False)["input_ids"])
    model = scripted(tokenizer, "It is six.", end, " and on and on and on")
    assert generate(model, tokenizer, [ASKED], 40) == ["It is six."] and model.said == length + 1
    model.said = 0
    assert "".join(stream(model, tokenizer, ASKED, 40)).strip() == "It is six." and model.said == length + 1


def test_the_held_out_prompts_hold_the_tools_of_their_row(speaks, scripted):
    tokenizer = speaks("qwen2_5")
    model = scripted(tokenizer, *["a <|im_end|>"] * 2)
    rows = [Example([*ASKED, {"role": "assistant", "content": "b"}], tools=t) for t in ([{"name": "weather"}], None)]
    assert answers(model, tokenizer, rows, 4, 1) == ["a", "a"]
    assert sorted('{"name": "weather"}' in prompt for prompt in model.read) == [False, True]
    assert all(prompt.endswith("assistant\n") for prompt in model.read)
