"""What the doctor says about machines made of facts: torch is what the trials would have returned."""

from dataclasses import replace

from helpers.doctor import examine, finding, look
from helpers.doctor.cards import Card, Process
from tests.doctor.faked import CARD, FILES, ON_CPU, hip, levels, output_of, plant
from tests.doctor.test_readings import MI300X, TREES

import pytest

NO_REMEDY = {("all", "not_read"), ("sensors", "silent")}  # whatever was not known when this was written


def test_a_machine_without_a_gpu_gets_an_unalarming_table(judged):
    found = judged(files={})
    assert {level for check in found for level in levels(found, check)} == {"ok"}
    assert "runs on the CPU" in found["GPU"][0].says
    assert not {"Device files", "Visible devices", "Kernels", "Versions"} & set(found)


def test_a_good_instinct_is_all_ok(judged):
    found = judged(hip({}), [CARD])
    assert {level for check in found for level in levels(found, check)} == {"ok"}
    assert "49% of the 1,307" in found["Speed"][0].says and "74% of 5,300" in found["Speed"][0].says


@pytest.mark.parametrize(
    ("answers", "files", "product"),
    [
        (MI300X, {}, "MI300X (gfx942, 206 GB)"),
        ({"static": output_of("Radeon PRO W7900, static as text"), "": "!exit 1"}, {}, "Radeon Pro W7900"),
        ({}, TREES[0]["files"], "Radeon 8060S"),
    ],
    ids=["MI300X", "W7900", "Strix Halo"],
)
def test_a_torch_for_the_cpu_beside_an_amd_gpu_is_a_problem_with_its_remedy(
    tools_on_path, tmp_path, monkeypatch, answers, files, product
):
    monkeypatch.setattr("helpers.doctor.probes.ask", lambda: ON_CPU)
    if answers:
        tools_on_path(answers)
    report = examine(look(plant(tmp_path / "root", FILES | files)))
    (one,) = [f for f in report if f.check == "GPU"]
    assert one.level == report.worst == "problem" and product in one.says and "make setup" in one.remedy


def test_a_rocm_build_that_sees_no_gpu_says_so(judged):
    found = judged(hip(), [CARD])
    assert levels(found, "GPU") == ["problem"] and "sees no GPU" in found["GPU"][0].says


def test_a_gpu_that_no_wheel_serves_leaves_the_cpu(judged):
    found = judged(ON_CPU, [Card("Raphael", "gfx1036", 2**29)])
    assert levels(found, "GPU") == ["ok"] and "runs on the CPU" in found["GPU"][0].says


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({}, None, "Install AMD's driver"),
        ({".dockerenv": ""}, None, "--device /dev/kfd"),
        (FILES, "Permission denied", "usermod -aG render,video"),
        (FILES | {"run/.containerenv": ""}, "Operation not permitted", "--group-add"),
    ],
)
def test_device_files_that_are_absent_or_closed_are_a_problem(judged, monkeypatch, files, error, words):
    monkeypatch.setattr("helpers.doctor.checks.open_error", lambda path: error)
    found = judged(hip(), [CARD], files)
    assert levels(found, "Device files") == ["problem"] and words in found["Device files"][0].remedy


@pytest.mark.parametrize(
    ("probes", "variables", "expected", "words"),
    [
        (hip(), {"HIP_VISIBLE_DEVICES": ""}, "problem", "hides every GPU"),
        (hip(), {"ROCR_VISIBLE_DEVICES": "-1"}, "problem", "hides every GPU"),
        (hip({}), {"HIP_VISIBLE_DEVICES": "0"}, "ok", "HIP_VISIBLE_DEVICES='0'"),
        (
            hip({}),
            {"ROCR_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "1"},
            "warning",
            "within what the first leaves",
        ),
        (hip({}, {}), {}, "warning", "DataParallel"),
    ],
)
def test_visible_devices(judged, probes, variables, expected, words):
    found = judged(probes, [CARD] * max(1, len(probes["torch_sees"]["devices"])), **variables)["Visible devices"]
    assert found[0].level == expected and words in found[0].says


def test_the_processors_graphics_beside_a_card_are_to_be_hidden(judged):
    cards = [Card("AMD Radeon RX 7900 XTX", "gfx1100", 24 * 2**30), Card("Raphael", "gfx1036", 2**29)]
    small = {"name": "AMD Radeon Graphics", "gfx": "gfx1036", "integrated": True, "total": 2**29, "free": 2**28}
    found = judged(hip({"name": "x", "gfx": "gfx1100"}, small), cards)["Visible devices"]
    assert found[0].level == "warning" and "ROCR_VISIBLE_DEVICES=0" in found[0].remedy


def test_kernels_for_another_architecture(judged):
    assert levels(judged(hip({"gfx": "gfx1201"}), [CARD]), "Kernels") == ["problem"]
    found = judged(hip({}), [CARD], HSA_OVERRIDE_GFX_VERSION="11.0.0")["Kernels"]
    assert found[0].level == "warning" and "HSA_OVERRIDE_GFX_VERSION=11.0.0" in found[0].says


def test_versions_far_apart(judged):
    far = judged(hip({}), [CARD], FILES | {"opt/rocm/.info/version": "5.7.1-98"})["Versions"]
    assert far[0].level == "warning" and "ROCm 5.7.1 installed" in far[0].says and "ROCm 7.1" in far[0].says


def test_memory_names_its_owners_and_never_believes_more_free_than_there_is(judged):
    held = [Process(4711, "python3", 90e9, 0), Process(5, "tiny", 10, 0)]
    taken = judged(hip({"free": 110e9}), [CARD], processes=held)["GPU memory"]
    assert taken[0].level == "warning" and "python3 (4711) holds 90 GB" in taken[0].says and "tiny" not in taken[0].says
    desktop = judged(hip({}), [replace(CARD, used=50e9)])["GPU memory"][0]  # HIP says 205 GB free
    assert desktop.level == "warning" and "156 GB of 206 GB free" in desktop.says
    strange = judged(hip({"free": 400e9}), [replace(CARD, used=None)])["GPU memory"][0]
    assert strange.level == "ok" and "206 GB of 206 GB free" in strange.says


def test_parts_and_sharing_are_explained(judged):
    parted = judged(hip({}), [replace(CARD, compute_partition="CPX", memory_partition="NPS4")])
    assert levels(parted, "Shared or divided") == ["warning"] and "of the" not in parted["Speed"][0].says
    two = judged(hip({"name": "AMD Instinct MI250X/MI250", "gfx": "gfx90a"}, {"name": "AMD Instinct MI250X/MI250"}))
    assert "half of the card" in two["Shared or divided"][0].says
    halo = judged(
        hip({"gfx": "gfx1151", "name": "8060S", "integrated": True}),
        [Card("8060S", "gfx1151", 2**32, gtt_total=96 * 2**30)],
    )
    assert "may use 103 GB more" in halo["Shared or divided"][0].says


def test_an_unknown_card_gets_no_share_of_a_peak(judged):
    found = judged(hip({"name": "AMD Instinct MI999"}), [replace(CARD, name="AMD Instinct MI999")])["Speed"][0]
    assert found.level == "ok" and "%" not in found.says and "not in our list" in found.says


def test_each_text_has_a_level_and_each_trouble_a_remedy():
    for check, cases in finding.TEXTS.items():
        for case, text in cases.items():
            assert set(text) <= {"level", "says", "remedy", "source"} and text["level"] in finding.LEVELS
            assert text["level"] == "ok" or "remedy" in text or (check, case) in NO_REMEDY, (check, case)
            assert text.get("source", "https://").startswith("https://")
