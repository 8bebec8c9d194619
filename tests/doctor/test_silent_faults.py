"""Faults that give no message, or the wrong one: each kind with at least three members, on facts and recorded outputs."""

from helpers.doctor import trials
from helpers.doctor.cards import Card, ask_amd, parse
from helpers.doctor.machine import Machine, read_amd
from helpers.doctor.probes import NAMES
from tests.doctor.faked import CARD, FILES, hip, levels, plant

import bitsandbytes
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

WSL = {"proc/sys/kernel/osrelease": "6.6.87.2-microsoft-standard-WSL2", "dev/dxg": ""}
NO_DRIVER = "Unable to get devices, driver not initialized (amdgpu not found in modules)"
NO_GPU = "Unable to detect any GPU devices, check amdgpu version and module status (sudo modprobe amdgpu)"

# --- a divided card, under each name that the partition has had -------------------------------------------------------


def _static(*lines: str) -> str:
    return "\n".join(["GPU: 0", "    PARTITION:", *(f"        {line}" for line in lines)])


@pytest.mark.parametrize(
    ("output", "compute", "memory"),
    [
        (_static("ACCELERATOR_PARTITION: CPX", "MEMORY_PARTITION: NPS4"), "CPX", "NPS4"),
        (_static("COMPUTE_PARTITION: DPX", "MEMORY_PARTITION: NPS2"), "DPX", "NPS2"),
        (_static("ACCELERATOR_PARTITION: N/A", "COMPUTE_PARTITION: QPX"), "QPX", None),
        (_static("ACCELERATOR_PARTITION: CPX", "MEMORY_PARTITION: N/A"), "CPX", None),
    ],
)
def test_a_divided_card_is_known_by_every_name_of_its_partition(judged, output, compute, memory):
    (card,) = parse(output)
    assert (card.compute_partition, card.memory_partition) == (compute, memory)
    (finding,) = judged(hip({"name": "AMD Instinct MI300X"}), [card])["Shared or divided"]
    assert finding.level == "warning" and f"divided ({compute}, {memory or 'memory mode unknown'})" in finding.says


def test_a_divided_card_is_known_by_the_kernel_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    card = "sys/class/drm/card1/device/"
    root = plant(tmp_path, {card + "vendor": "0x1002", card + "current_compute_partition": "CPX"})
    assert read_amd(root)["amd"][0].compute_partition == "CPX"


@pytest.mark.parametrize("partition", ["SPX", "N/A", ""])
def test_a_whole_card_is_not_called_divided(judged, partition):
    cards = parse(_static(f"ACCELERATOR_PARTITION: {partition}"))
    assert "Shared or divided" not in judged(hip({}), cards)


# --- the sentence of a tool that cannot read the card -----------------------------------------------------------------


def _printed(prefix: str, to: str = ">&2") -> dict[str, str]:
    return {"": f"!printf '{prefix}{NO_DRIVER}\\n{prefix}{NO_GPU}\\n' {to}; exit 255"}


FORMS = {
    "as the issue gives it": _printed("ERROR: "),
    "through Python's logging": _printed("ERROR:root:"),
    "on the output": _printed("ERROR: ", to=""),
    "behind a warning": {
        "": f"!printf 'WARNING: User is missing groups: render\\nERROR:root:{NO_DRIVER}\\n' >&2; exit 1"
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_healthy_wsl_shows_the_tools_own_sentence_once_and_no_warning(judged, tools_on_path, tmp_path, form):
    tools_on_path(FORMS[form])
    trouble = read_amd(tmp_path / "empty", seconds=5)["trouble"]
    findings = judged(hip({"name": "AMD Radeon RX 7900 XTX", "gfx": "gfx1100"}), (), WSL, trouble=trouble)
    (sensors,) = findings["Sensors"]
    assert sensors.level == "ok" and NO_DRIVER in sensors.says and "WSL" in sensors.says and sensors.remedy
    assert levels(findings, "Device files") == ["ok"]
    assert {level for check in findings for level in levels(findings, check)} == {"ok"}


@pytest.mark.parametrize(
    ("files", "cards", "probes", "level", "words"),
    [
        ({}, [], hip(), "warning", "modprobe amdgpu"),
        ({".dockerenv": ""}, [], hip(), "warning", "belongs to the host"),
        (FILES, [CARD], hip({}), "ok", "built into the kernel"),  # no module, because the kernel has the driver inside
        (FILES, [], hip({}), "ok", "built into the kernel"),
    ],
    ids=["no driver", "container", "driver in the kernel", "torch alone sees it"],
)
def test_the_same_sentence_elsewhere_gets_the_remedy_of_that_place(judged, files, cards, probes, level, words):
    (finding,) = judged(probes, cards, files, trouble=f"amd-smi says: {NO_DRIVER}")["Sensors"]
    assert finding.level == level and NO_DRIVER in finding.says and words in finding.remedy


@pytest.mark.parametrize(
    ("printed", "sentence"),
    [
        ("ERROR: Failed to open /dev/kfd: permission denied", "says: Failed to open /dev/kfd: permission denied"),
        ("CRITICAL:root:No GPU was found.", "says: No GPU was found"),
        ("usage: amd-smi [-h]", "printed nothing that could be understood"),
    ],
)
def test_only_a_sentence_counts_as_the_tools_own(tools_on_path, printed, sentence):
    tools_on_path({"": printed})
    assert ask_amd() == ([], f"amd-smi {sentence}")


@pytest.mark.parametrize(
    ("torch_build", "words"), [(hip(), "librocdxg"), (None, "make setup TORCH=rocm")], ids=["ROCm build", "CPU build"]
)
def test_a_wsl_whose_gpu_torch_cannot_see_is_a_problem(judged, torch_build, words):
    files = WSL | {"opt/rocm/.info/version": "7.2.1"}
    (finding,) = judged(*([torch_build] if torch_build else []), files=files)["GPU"]
    assert finding.level == "problem" and words in finding.remedy and "/dev/dxg" in finding.says


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
    result = trials.four_bits() | {"library": "libbitsandbytes_rocm71.so"}
    assert 0.05 < result["error"] < 0.15 and {"1 x bfloat16", "8 x bfloat16"} <= set(result["products"])
    (finding,) = judged(hip({}) | {"four_bits": result}, [CARD])["4 bits"]
    assert finding.level == ("ok" if right else "problem")
    assert right or ("read back" in finding.says and "qlora" in finding.remedy)


def test_one_row_alone_is_enough_to_be_found_wrong(judged):
    products = {"1 x bfloat16": 0.71, "8 x bfloat16": 0.003, "1 x float16": 0.002}
    result = {"version": "0.49", "library": "libbitsandbytes_rocm71.so", "error": 0.092, "products": products}
    (finding,) = judged(hip({}) | {"four_bits": result}, [CARD])["4 bits"]
    assert finding.level == "problem" and "1 x bfloat16" in finding.says and "71%" in finding.says


# --- the attention kernel that runs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernels", "variables", "level", "words"),
    [
        ({"causal": "math", "grouped": "math", "padded": "math"}, {}, "warning", "causal and grouped and padded"),
        ({"causal": "flash", "grouped": "math", "padded": "efficient"}, {}, "warning", "(grouped)"),
        (
            {"causal": "flash", "padded": "math"},
            {"TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": "1"},
            "warning",
            "has none",
        ),
        ({"causal": "flash", "grouped": "flash", "padded": "efficient"}, {}, "ok", "flash (causal, grouped)"),
    ],
)
def test_a_silent_fall_to_the_math_kernel_is_a_warning(judged, kernels, variables, level, words):
    probes = hip({"gfx": "gfx1100"}) | {"attention": {"error": 0.004, "kernels": kernels}}
    (finding,) = judged(probes, [Card("AMD Radeon RX 7900 XTX", "gfx1100")], **variables)["Attention"]
    assert finding.level == level and words in finding.says
    assert level == "ok" or variables or "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1" in finding.remedy


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
@pytest.mark.parametrize("heads", [4, 2])
def test_the_kernel_is_named_from_what_really_ran(backend, heads):
    query, key = torch.randn(1, 4, 8, 16), torch.randn(1, heads, 8, 16)

    with sdpa_kernel(backend), profile(activities=[ProfilerActivity.CPU]) as seen:
        scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=heads < 4)
    expected = "math" if backend == SDPBackend.MATH else "flash"
    assert trials.kernel_that_ran(seen) == expected


def test_on_a_processor_the_math_kernel_is_no_warning(judged):
    kernels = {"attention": {"error": 1e-6, "kernels": {"causal": "math"}}}
    assert levels(judged(hip() | kernels, files={}), "Attention") == ["ok"]


# --- Triton -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "level", "words"),
    [
        ({"failed": "the process ended with SIGABRT: LLVM ERROR: Cannot select: intrinsic %llvm.amdgcn.fdot2.bf16.bf16"},
         "warning", 'precision="fp32"'),
        ({"failed": "RuntimeError: Failed to find C compiler. Please specify via CC"}, "warning", "gcc"),
        ({"failed": "CalledProcessError: Python.h: No such file or directory"}, "warning", "python3-dev"),
        ({"failed": "no answer within 60 s"}, "warning", 'kernels="torch"'),
        ({"error": 1.0}, "problem", "AMDGCN_USE_BUFFER_OPS=0"),
        ({"error": 1e9}, "problem", 'kernels="torch"'),
        ({"error": 0.003}, "ok", ""),
        ({"skipped": "the package triton is not installed"}, "ok", ""),
    ],
)  # fmt: skip
def test_whether_triton_compiles_a_product_in_bf16(judged, result, level, words):
    (finding,) = judged(hip({"gfx": "gfx1032"}) | {"triton": result}, [CARD])["Triton"]
    assert finding.level == level and words in finding.remedy


def test_every_trial_of_the_list_exists_and_a_crash_keeps_its_last_error():
    assert all(callable(getattr(trials, name)) for name in NAMES)
    assert Machine().torch == {"devices": []}
