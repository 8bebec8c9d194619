"""Faults that give no message, or the wrong one: each kind with at least three members, on facts and recorded outputs."""

from helpers.doctor.cards import ask_amd, parse
from helpers.doctor.machine import read_amd
from tests.doctor.faked import CARD, FILES, hip, levels, plant

import pytest

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
