"""Counts against real modules without memory, and predictions against measurements."""

from helpers.engine.loss import supervised_nll
from helpers.guards import count
from helpers.memory import SHAPES, Shape, lora_parameters, predict, target_names
from helpers.models import adapter_config
from helpers.records import load_reference, load_table
from helpers.settings import IGNORED, settings_for

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def llama2_7b():
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
                                            num_attention_heads=32, vocab_size=32000, tie_word_embeddings=False))  # fmt: skip


def test_llama2_7b_has_the_published_number_of_parameters(llama2_7b):
    assert Shape.of(llama2_7b.config) == SHAPES["Llama-2-7B"]
    assert count(llama2_7b) == (6_738_415_616, 6_738_415_616)
    assert SHAPES["Llama-2-7B"].parameters == 6_738_415_616


@pytest.mark.parametrize(("rank", "published"), [(8, 4_194_304), (64, 33_554_432)])
def test_lora_on_llama2_7b_has_the_published_number_of_parameters(llama2_7b, rank, published):
    settings = settings_for("llama2-7b", rank=rank, targets="q_proj,v_proj")
    wrapped = get_peft_model(llama2_7b, adapter_config(settings), low_cpu_mem_usage=True)
    assert count(wrapped)[0] == published == lora_parameters(SHAPES["Llama-2-7B"], rank, "q_proj,v_proj")
    wrapped.unload()


def test_default_model_shape():
    assert SHAPES["SmolLM2-135M"].parameters == 134_515_008


def test_unknown_target_is_refused():
    with pytest.raises(ValueError, match="no layer that LoRA adapts here is called qproj; there are q_proj"):
        target_names(SHAPES["SmolLM2-135M"], "qproj")


def test_four_times_the_weights():
    parts = predict(SHAPES["Llama-2-7B"], "full", batch=1, length=1, precision="fp32").to_dict()
    assert parts["weights"] + parts["gradients"] + parts["optimizer"] == 4 * parts["weights"]


@pytest.mark.parametrize(
    "case", load_table("memory-7b")["cases"], ids=lambda c: f"{c['method']}-{c['batch']}x{c['length']}"
)
def test_prediction_is_within_ten_per_cent_of_the_peak_measured_on_an_h200(case):
    """Peaks measured by tests/benchmarks/reference_runs.py memory7b; the prediction is made anew."""
    asked = {
        k: case[k]
        for k in (
            "method",
            "batch",
            "length",
            "rank",
            "targets",
            "precision",
            "attention",
            "checkpointing",
            "dropout",
            "fused",
        )
    }
    assert predict(SHAPES["Llama-2-7B"], **asked).total == pytest.approx(case["peak_measured"], rel=0.10)


def test_measured_cases_cover_the_methods_and_settings():
    cases = load_table("memory-7b")["cases"]
    assert len(cases) >= 8 and {c["method"] for c in cases} == {"full", "lora", "qlora"}
    assert {c["precision"] for c in cases} == {"bf16", "fp32"} and {c["checkpointing"] for c in cases} == {True, False}
    assert len({c["rank"] for c in cases}) >= 4 and len({c["targets"] for c in cases}) >= 3


@pytest.mark.parametrize("record", load_reference("small-h200") + load_reference("llama2-7b-shape-h200"),
                         ids=lambda r: f"{r.profile}-{r.method}-s{r.seed}")  # fmt: skip
def test_runs_through_the_notebooks_path_agree_with_their_prediction(record):
    """Whole runs on an H200. The prediction takes every token for supervised; of these small rows less than half are."""
    if record.method != "base":
        assert 0.95 < record.memory["predicted"]["total"] / record.memory["peak"] < 1.20


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_activations_equal_what_autograd_saves(method, precision):
    """Count the bytes that the forward pass really keeps, on a CPU, for a small Llama with long enough rows."""
    config = LlamaConfig(hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
                         num_key_value_heads=4, vocab_size=512, attn_implementation="eager")  # fmt: skip
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    model = LlamaForCausalLM(config).to(dtype)
    settings = settings_for("tiny", method)
    if settings.method != "full":
        model = get_peft_model(model, adapter_config(settings), autocast_adapter_dtype=False).to(dtype)
    ids = torch.randint(3, 512, (4, 128))
    labels = torch.full_like(ids, IGNORED)
    labels[:, -8:] = ids[:, -8:]
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        supervised_nll(model, ids, labels, attention_mask=torch.ones_like(ids))
    measured = sum(t.untyped_storage().nbytes() for t in saved.values())
    parts = predict(Shape.of(config), method, batch=4, length=128, rank=settings.rank, precision=precision,
                    attention="eager").to_dict()  # fmt: skip
    assert parts["activations"] == pytest.approx(measured, rel=0.15)


def test_checkpointing_and_fewer_rows_take_less():
    shape = SHAPES["Llama-2-7B"]
    usual = predict(shape, "lora", batch=4, length=1024).total
    assert predict(shape, "lora", batch=4, length=1024, checkpointing=True).total < usual
    assert predict(shape, "lora", batch=2, length=1024).total < usual
    assert predict(shape, "qlora", batch=4, length=1024).total < usual
