"""Kernels that give wrong numbers or run slowly without a message: the trials run on made-up kernels."""

from types import SimpleNamespace

from helpers.doctor import four_bit, trials
from helpers.doctor.cards import Card
from helpers.doctor.probes import NAMES
from tests.doctor.faked import CARD, hip

import bitsandbytes
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

# --- products with a 4-bit matrix -------------------------------------------------------------------------------------


def _half_wrong(factor):
    def product(x, packed, quant_state):
        exact = x @ bitsandbytes.functional.dequantize_4bit(packed.t(), quant_state).to(x.dtype).T
        return torch.cat([exact[:, :128], exact[:, 128:] * factor], dim=1)

    return product


@pytest.mark.parametrize(
    ("product", "right"),
    [
        (_half_wrong(0.0), False),
        (_half_wrong(1.1), False),
        (_half_wrong(float("nan")), False),
        (lambda x, packed, quant_state: torch.randn(len(x), 256), False),
        (_half_wrong(1.001), True),
        (bitsandbytes.matmul_4bit, True),
    ],
    ids=["half is zero", "half is too large", "half is NaN", "unrelated", "rounding", "the real library"],
)
def test_a_product_that_is_wrong_in_one_half_is_a_problem_although_reading_back_is_right(
    judged, monkeypatch, product, right
):
    monkeypatch.setattr(bitsandbytes, "matmul_4bit", product)
    result = trials.four_bits()
    assert 5 < float(result["error"].split()[0]) < 15
    (finding,) = judged(hip({}) | {"four_bits": result}, [CARD])["4 bits"]
    assert finding.level == ("ok" if right else "problem")
    assert right or ("read back" in finding.says and "qlora" in finding.remedy)


def test_one_row_alone_is_enough_to_be_found_wrong(judged, monkeypatch):
    right = bitsandbytes.matmul_4bit
    monkeypatch.setattr(
        bitsandbytes,
        "matmul_4bit",
        lambda x, *rest, **options: right(x, *rest, **options) * (1.71 if len(x) == 1 else 1),
    )
    (finding,) = judged(hip({}) | {"four_bits": trials.four_bits()}, [CARD])["4 bits"]
    assert finding.level == "problem" and "(1 x " in finding.says and "71 %" in finding.says


@pytest.mark.parametrize(
    ("library", "level", "words"),
    [
        ("libbitsandbytes_cpu.so", "warning", "for the processor"),
        ("libbitsandbytes_rocm70.so", "ok", "not made for ROCm 7.1"),
        ("libbitsandbytes_rocm71.so", "ok", "products with it are right"),
    ],
)
def test_the_library_that_computed_is_named(judged, monkeypatch, library, level, words):
    loaded = SimpleNamespace(_lib=SimpleNamespace(_name=f"/somewhere/{library}"))
    monkeypatch.setattr(bitsandbytes.cextension, "lib", loaded)
    monkeypatch.setattr(trials, "GPU", True)
    monkeypatch.setattr(torch.version, "hip", "7.1.5")
    (finding,) = judged(hip({}) | {"four_bits": trials.four_bits()}, [CARD])["4 bits"]
    assert finding.level == level and words in finding.says and library in finding.says


def test_a_matrix_that_is_not_what_was_stored_is_a_problem(judged, monkeypatch):
    right = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda *stored: right(*stored) * 2)
    (finding,) = judged({"four_bits": trials.four_bits()}, files={})["4 bits"]
    assert finding.level == "problem" and "9 % would be right" in finding.says


# --- the attention kernel that runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernels", "variables", "level", "words"),
    [
        ({"causal": "math", "grouped": "math", "padded": "math"}, {}, "warning", "causal and grouped and padded"),
        ({"causal": "flash", "grouped": "math", "padded": "efficient"}, {}, "warning", "(grouped)"),
        (
            {"causal": "flash", "grouped": "flash", "padded": "math"},
            {"TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": "1"},
            "warning",
            "has none",
        ),
        (
            {"causal": "flash", "grouped": "flash", "padded": "efficient"},
            {},
            "ok",
            "flash (grouped), efficient (padded)",
        ),
    ],
)
def test_a_silent_fall_to_the_math_kernel_is_a_warning(judged, monkeypatch, kernels, variables, level, words):
    result = attention_of(monkeypatch, kernels, "7.1", variables)
    (finding,) = judged(hip({"gfx": "gfx1100"}) | {"attention": result}, [Card("AMD Radeon RX 7900 XTX", "gfx1100")])[
        "Attention"
    ]
    assert finding.level == level and words in finding.says
    assert level == "ok" or variables or "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1" in finding.remedy


def test_on_another_makers_gpu_the_remedy_is_another(judged, monkeypatch):
    result = attention_of(monkeypatch, dict.fromkeys(("causal", "grouped", "padded"), "math"), None)
    (finding,) = judged(hip({}) | {"attention": result}, [CARD])["Attention"]
    assert finding.level == "warning" and "AOTRITON" not in finding.remedy


def attention_of(monkeypatch, kernels, hip_version, variables=()) -> dict:
    """The trial's result where these kernels run in its forms."""
    ran = iter([name for name in kernels.values() for _ in range(2)])  # in each form once as asked, once as math
    monkeypatch.setattr(trials, "kernel_that_ran", lambda seen: next(ran))
    monkeypatch.setattr(trials, "GPU", True)
    monkeypatch.setattr(torch.version, "hip", hip_version)
    for name in variables:
        monkeypatch.setenv(name, variables[name])
    return trials.attention()


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("heads", [4, 2])
def test_the_kernel_is_named_from_what_really_ran(backend, heads):
    query, key = torch.randn(1, 4, 8, 16), torch.randn(1, heads, 8, 16)

    with sdpa_kernel(backend), profile(activities=[ProfilerActivity.CPU]) as seen:
        scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=heads < 4)
    expected = "math" if backend == SDPBackend.MATH else "flash"
    assert trials.kernel_that_ran(seen) == expected


def test_on_a_processor_the_math_kernel_is_no_warning(monkeypatch):
    monkeypatch.setattr(trials, "kernel_that_ran", lambda seen: "math")
    assert trials.attention()["case"] == "right"


# --- Triton -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "level", "words"),
    [
        ({"failed": "the process ended with SIGABRT: LLVM ERROR: Cannot select: intrinsic %llvm.amdgcn.fdot2.bf16.bf16"},
         "warning", 'precision="fp32"'),
        ({"failed": "RuntimeError: Failed to find C compiler. Please specify via CC"}, "warning", "gcc"),
        ({"failed": "CalledProcessError: Python.h: No such file or directory"}, "warning", "python3-dev"),
        ({"failed": "no answer within 60 s"}, "warning", 'kernels="torch"'),
        (1.0, "problem", "AMDGCN_USE_BUFFER_OPS=0"),
        (float("nan"), "problem", 'kernels="torch"'),
        (0.003, "ok", ""),
        ({"skipped": "the package triton is not installed"}, "ok", ""),
    ],
)  # fmt: skip
def test_whether_triton_compiles_a_product_in_bf16(judged, monkeypatch, result, level, words):
    if isinstance(result, float):  # a product that is off by this much
        monkeypatch.setattr(trials, "GPU", True)
        monkeypatch.setattr(trials.util, "find_spec", lambda name: True)
        fake = SimpleNamespace(product=lambda a, b: (a @ b) * (1 + result))
        monkeypatch.setattr(trials, "import_module", lambda name: fake)
        result = trials.triton()
    (finding,) = judged(hip({"gfx": "gfx1032"}) | {"triton": result}, [CARD])["Triton"]
    assert finding.level == level and words in finding.remedy


def test_every_trial_of_the_list_exists():
    assert all(callable(getattr(trials, name)) for name in NAMES)


def test_the_libraries_of_the_wheel_are_listed():
    found = four_bit.libraries()
    assert "cpu" in found and any(name.startswith("rocm") for name in found)
