"""The shorter forward pass of a LoRA layer computes what PEFT's does, and leaves alone what it does not know."""

from helpers.engine.lora import fuse

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.pytorch_utils import Conv1D


def layer_of(kind=lambda: torch.nn.Linear(24, 40), dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = get_peft_model(
        torch.nn.Sequential(kind()).to(dtype), LoraConfig(r=4, lora_alpha=12, target_modules=["0"], **options)
    )
    for name, weight in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def output_and_gradients(model, x):
    torch.manual_seed(1)  # of the dropout
    out = model(x)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return [out, *torch.autograd.grad(out.float().square().sum(), [x, *trained])]


@pytest.mark.parametrize("kind", [
    lambda: torch.nn.Linear(24, 40), lambda: torch.nn.Linear(24, 40, bias=False), lambda: Conv1D(40, 24),
])  # fmt: skip
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_computes_what_peft_computes(kind, dtype, most, dropout):
    model = layer_of(kind, dtype, lora_dropout=dropout, fan_in_fan_out=isinstance(kind(), Conv1D))
    x = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True)
    expected = output_and_gradients(model, x)
    fuse(model)
    found = output_and_gradients(model, x)
    assert "forward" in vars(model.base_model.model[0])
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and (a - b).norm() <= most * b.norm()


def second_adapter(model):
    model.add_adapter("second", LoraConfig(r=2, target_modules=["0"]))
    model.base_model.set_adapter(["default", "second"])


@pytest.mark.parametrize(("options", "change"), [
    ({"use_dora": True}, None), ({"lora_bias": True}, None), ({}, second_adapter),
    ({}, lambda model: model.merge_adapter()), ({}, lambda model: model.base_model.disable_adapter_layers()),
])  # fmt: skip
def test_it_leaves_alone_what_it_does_not_know(options, change):
    model = layer_of(**options)
    if change:
        change(model)
    fuse(model)
    assert not any("forward" in vars(module) for module in model.modules())


def test_it_lasts_as_long_as_the_training(runs):
    assert not any("forward" in vars(module) for module in runs.lora.model.modules())
