"""Frozen weights in fp8: near the bf16 products, trained with LoRA, restored bit for bit, refused where they cannot run."""

from dataclasses import replace

from helpers.device import plan
from helpers.engine import fp8, preflight, trainer
from helpers.engine.preflight import TrainingError
from helpers.models import load_base, to_train
from helpers.settings import settings_for
from helpers.sources import resolve
from helpers.training import train

import pytest
import torch

TINY = settings_for("tiny", "lora", precision="bf16")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = to_train(load_base(resolve(TINY), "bf16"), TINY, "bf16")
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # as after some training: an adapter that changes something
            weight.data.normal_(std=0.02)
    return model


def loss_and_gradients(model) -> tuple[float, torch.Tensor]:
    ids = torch.arange(4, 100)[None]
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def test_a_product_is_within_what_8_bits_leave():
    a, b = torch.randn(32, 64, dtype=torch.bfloat16), torch.randn(48, 64, dtype=torch.bfloat16)
    exact = a.float() @ b.float().t()
    got = fp8.product(*fp8.quantise(a, torch.float8_e4m3fn), *fp8.quantise(b, torch.float8_e4m3fn)).float()
    assert 0.001 < (got - exact).norm() / exact.norm() < 0.06


def test_rows_of_any_size_use_the_whole_range_of_the_format():
    rows = torch.tensor([[1e-6, -3e-6], [0.0, 0.0], [2e4, 1.0]])
    values, scale = fp8.quantise(rows, torch.float8_e4m3fn)
    assert values.float().abs().amax(1).tolist() == [448.0, 0.0, 448.0]
    assert torch.allclose(values.float() * scale, rows, rtol=0.07)


def test_loss_and_gradients_are_near_those_of_bf16(model):
    loss, gradients = loss_and_gradients(model)
    with fp8.products_in_fp8(model):
        near, approximate = loss_and_gradients(model)
    assert near != loss and near == pytest.approx(loss, rel=0.02)
    assert torch.cosine_similarity(approximate, gradients, dim=0) > 0.98


def test_only_frozen_layers_are_swapped_and_all_come_back_bit_for_bit(model):
    before = {name: value.clone() for name, value in model.named_parameters()}
    with fp8.products_in_fp8(model):
        swapped = [name for name, module in model.named_modules() if isinstance(module, fp8.Fp8Linear)]
        assert len(swapped) == 2 * 7 and all("lora" not in name.split(".")[-1] for name in swapped)
    assert {n: v.dtype for n, v in model.named_parameters()} == {n: v.dtype for n, v in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_trained_weights_stay_bf16_and_get_near_gradients():
    torch.manual_seed(0)
    full = TINY.change(method="full")
    model = to_train(load_base(resolve(full), "bf16"), full, "bf16")
    before = {name: value.clone() for name, value in model.named_parameters()}
    loss, gradients = loss_and_gradients(model)
    with fp8.products_in_fp8(model):
        assert sum(isinstance(module, fp8.Fp8TrainedLinear) for module in model.modules()) == 2 * 7
        near, approximate = loss_and_gradients(model)
    assert near != loss and near == pytest.approx(loss, rel=0.02)
    assert torch.cosine_similarity(approximate, gradients, dim=0) > 0.98
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert not any(isinstance(module, fp8.Fp8TrainedLinear) for module in model.modules())
    assert loss_and_gradients(model)[0] == loss


def test_layers_that_the_product_cannot_take_keep_bf16(model):
    block = model.get_base_model().model.layers[0]
    block.mlp.down_proj = torch.nn.Linear(40, 64, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    block.mlp.up_proj = torch.nn.Linear(64, 40, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    with fp8.products_in_fp8(model):
        assert type(block.mlp.down_proj) is type(block.mlp.up_proj) is torch.nn.Linear
        assert sum(isinstance(module, fp8.Fp8Linear) for module in model.modules()) == 2 * 7 - 2


def test_an_error_inside_restores_the_model_too(model):
    with pytest.raises(RuntimeError), fp8.products_in_fp8(model):
        raise RuntimeError("in the middle")
    assert not any(isinstance(module, fp8.Fp8Linear) for module in model.modules())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_whole_training_learns_and_its_record_says_so(method, tmp_path, data, monkeypatch):
    monkeypatch.setattr(
        preflight, "probe", lambda device: None
    )  # a CPU emulates the products, which a user may not ask for
    data = replace(data, validation=data.validation[:3])  # bf16 is slow on a CPU
    runs = {
        products: train(
            settings_for("tiny", method, precision="bf16").change(
                runs_dir=str(tmp_path / products), max_steps=6, products=products
            ),
            data,
        ).record
        for products in ("plain", "fp8")
    }
    assert runs["fp8"].decisions["products"] == {"value": "fp8", "why": "set by you"}
    assert runs["fp8"].decisions["loss"]["value"] == runs["plain"].decisions["loss"]["value"] == "fast"
    last = {name: record.training["validation_loss"][-1] for name, record in runs.items()}
    assert last["fp8"] != last["plain"] and last["fp8"] == pytest.approx(last["plain"], rel=0.02)
    assert method == "full" or "frozen weights did not change" in {guard["name"] for guard in runs["fp8"].guards}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "a CPU has no fp8 products"),
        ({"method": "full"}, "a CPU has no fp8 products"),
        ({"method": "qlora"}, "qlora keeps its weights in 4 bits"),
        ({"precision": "fp32"}, "."),
    ],
)
def test_it_is_refused_with_the_reason(changes, why):
    settings = TINY.change(products="fp8", **changes)
    with pytest.raises(
        TrainingError, match=f"products='fp8' cannot be used for this run .*{why}.*leave `products` at None"
    ):
        preflight.fp8_runs(plan(settings, resolve(settings).shape), settings.method)


def test_without_asking_nothing_is_in_fp8(model):
    chosen = plan(TINY, resolve(TINY).shape)
    with trainer.fast(model, chosen):
        assert not any(isinstance(module, fp8.Fp8Linear) for module in model.modules())
