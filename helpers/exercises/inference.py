"""Checks for the exercises of 05_inference: the scale of an adapter, a fine-tune of the reader's own, a tool."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from helpers.data import Data, Example, encode, encode_answers
from helpers.evaluation import held_out_loss
from helpers.exercises import check, need
from helpers.exercises.data import calls_a_tool, thinks
from helpers.inference import generate
from helpers.models import load_base, load_tokenizer
from helpers.settings import Settings
from helpers.sources import quiet, resolve
from helpers.training import train

import torch
from peft import PeftModel


@check
def scaled_adapter(scale: Callable, *, load: Callable) -> str:
    """A function that multiplies the update of a loaded adapter; tried with the factors 1, 0.5 and 0 on fresh loads."""

    def update(model) -> torch.Tensor:
        layers = [m for m in model.modules() if hasattr(m, "get_delta_weight")]
        need(layers, "there is no adapter left on the model: scale it before it is merged.")
        ends = (layer.get_delta_weight("default").detach().float() for layer in (layers[0], layers[-1]))
        return torch.cat([delta.flatten() for delta in ends])

    full = update(load())
    for factor in (1.0, 0.5, 0.0):
        model = load()
        after = update(scale(model, factor) or model)
        share = (after.norm() / full.norm()).item()
        both = "B A is a product: scale one of the two, not both."
        left = f"with the factor {factor:g}, {share:.2f} of the update is left. {both if share == factor**2 else ''}"
        need(torch.allclose(after, factor * full, rtol=0.02, atol=1e-6), left)
    return "1 leaves the adapter, 0 gives the base, and 0.5 lies half way: a merged model can be mixed like that."


@check
def own_fine_tune(folder: str, talk: list[dict], *, settings: Settings) -> str:
    """An adapter that a reader trained without this package: loaded onto a fresh base, it has learned more than its rows."""
    there = (Path(folder) / "adapter_config.json").is_file()
    need(there, f"there is no adapter_config.json in {folder}: save the adapter there.")
    need([m.get("role") for m in talk][-2:] == ["user", "assistant"], "talk has to end with a question and its answer.")
    base = resolve(settings)
    tokenizer, model = load_tokenizer(base), load_base(base, "fp32")
    row = encode(Example(talk), tokenizer)
    before = held_out_loss(model, [row])["loss"]
    with quiet():
        model = PeftModel.from_pretrained(model, folder).eval()
    grown = any(value.any() for name, value in model.named_parameters() if "lora_B" in name)
    need(grown, "B is zero in every layer: this adapter was saved before it was trained.")
    after = held_out_loss(model, [row])["loss"]
    found = f"the loss on your conversation went from {before:.2f} to {after:.2f} nats per token"
    need(after < before, f"{found}: the adapter learned something, but nothing that helps there.")
    return f"{found}, and the model replies: {generate(model, tokenizer, [talk[:-1]], 60)[0]!r}"


@check
def tool_answered(respond: Callable, *, settings: Settings, tokenizer, steps: int = 60) -> str:
    """A function from a model's text to the next user turn, or None; then a model is trained to call, and is asked."""
    _, call, result, _ = calls_a_tool(12, 3)
    for text, wanted in (
        (call["content"], result["content"]),
        ("It is 36.", None),
        ("<tool_call>{12 x 3</tool_call>", None),  # no JSON
        ('<tool_call>{"name": "delete_files", "arguments": {}}</tool_call>', None),  # a model may write anything
    ):
        got = respond(text)
        need(got == wanted, f"for {text!r} it should give {wanted!r}, not {got!r}. Is it a call of a tool you offered?")
    rng = random.Random(0)
    numbers = [(rng.randrange(10, 99), rng.randrange(10, 99)) for _ in range(4 * steps)]
    talks = [make(*pair) for pair in numbers for make in (calls_a_tool, thinks)]
    rows = [row for talk in talks for row in encode_answers(Example(talk), tokenizer)]
    held_out = [encode(Example(thinks(7, 8)), tokenizer)]
    with tempfile.TemporaryDirectory() as folder:
        few = settings.change(runs_dir=folder, max_steps=steps, data="bundled")
        model = train(few, Data("tools", rows, held_out, held_out, harder=[], prose=[], counts={})).model
    asked = calls_a_tool(23, 45)[:1]
    wrote = generate(model, tokenizer, [asked], 60)[0]
    answer = respond(wrote) or "nothing, for it is no call"
    talk = [*asked, {"role": "assistant", "content": wrote}, {"role": "user", "content": answer}]
    final, thought = generate(model, tokenizer, [talk, thinks(31, 24)[:1]], 60)
    return (
        f"after {steps} steps the model was asked {asked[0]['content']!r} and wrote {wrote!r}. Your function gave {answer!r}, "
        f"and the model said {final!r}. Asked to think, it wrote {thought!r}."
    )
