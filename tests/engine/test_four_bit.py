"""4-bit layers whose scales are unpacked once compute what bitsandbytes' own do, and are back after the training."""

from helpers.engine.four_bit import FourBitLinear, unpacked_at_once
from helpers.models import load_base, to_train
from helpers.settings import settings_for
from helpers.sources import resolve

import bitsandbytes
import pytest
import torch


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_gives_the_same_output_and_gradient(nested, quant_type, bias, dtype):
    torch.manual_seed(0)
    own = bitsandbytes.nn.Linear4bit(
        128, 192, bias=bias, compute_dtype=dtype, compress_statistics=nested, quant_type=quant_type
    ).to("cpu", dtype)
    own.support_avx512bf16_for_cpu = False
    x = torch.randn(2, 5, 128, dtype=dtype, requires_grad=True)
    expected, found = own(x), FourBitLinear(own)(x)
    assert found.dtype == expected.dtype and own.weight.quant_state.nested == nested
    assert (found - expected).norm() <= 1e-2 * expected.norm()
    (turned,), (turn,) = (torch.autograd.grad(out.float().square().sum(), x) for out in (found, expected))
    assert turn.norm() > 0 and (turned - turn).norm() <= 1e-2 * turn.norm()


def test_a_model_has_the_same_loss_and_gradients_and_gets_its_layers_back():
    settings = settings_for("tiny", "qlora")
    model = to_train(load_base(resolve(settings), "fp32", four_bit=True), settings, "fp32")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    ids = torch.arange(4, 100)[None]

    def passes() -> list:
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]

    names, expected = [*model.state_dict()], passes()
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    with unpacked_at_once(model):
        assert not any(isinstance(m, bitsandbytes.nn.Linear4bit) for m in model.modules())
        found = passes()
    assert len(found) == len(expected) > 14
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    assert [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)] == layers
    assert [*model.state_dict()] == names
