"""4-bit layers dequantised by torch: the numbers of bitsandbytes, whatever it packed, and its own layers again afterwards."""

from helpers.engine.four_bit import TorchLinear4bit, dequantised_by_torch

import bitsandbytes
import pytest
import torch

KINDS = [
    {"quant_type": "nf4", "compress_statistics": True},
    {"quant_type": "nf4", "compress_statistics": False},
    {"quant_type": "fp4", "compress_statistics": True},
    {"quant_type": "nf4", "blocksize": 128},
]


def layer(bias: bool = False, dtype=torch.bfloat16, inputs: int = 256, **kind):
    torch.manual_seed(0)
    made = bitsandbytes.nn.Linear4bit(inputs, 96, bias=bias, compute_dtype=dtype)
    made.weight = bitsandbytes.nn.Params4bit(torch.randn(96, inputs, dtype=dtype), requires_grad=False, **kind).to(
        "cpu"
    )
    return torch.nn.Sequential(made.requires_grad_(False))


def out_and_gradient(model, dtype=torch.float32):
    x = torch.linspace(-1, 1, 2 * 5 * 256).view(2, 5, 256).to(dtype).requires_grad_()
    out = model(x)
    return out, torch.autograd.grad(out.float().square().sum(), x)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_weight_is_bit_for_bit_that_of_bitsandbytes(kind, dtype):
    model = layer(dtype=dtype, **kind)
    weight = model[0].weight
    expected = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    with dequantised_by_torch(model):
        assert isinstance(model[0], TorchLinear4bit) and torch.equal(model[0].weight_in(dtype), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_those_of_bitsandbytes(bias):
    model = layer(bias, torch.float32)
    expected = out_and_gradient(model)
    before = model[0]
    with dequantised_by_torch(model):
        got = out_and_gradient(model)
    assert model[0] is before
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(got, expected, strict=True))


def test_layers_of_other_kinds_are_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Embedding(3, 4), torch.nn.LayerNorm(4))
    model = torch.nn.Sequential(*model, layer(inputs=160)[0])  # its blocks of 64 cross the rows
    before = list(model)
    with pytest.raises(RuntimeError), dequantised_by_torch(model):
        assert list(model) == before
        raise RuntimeError("in the middle")
