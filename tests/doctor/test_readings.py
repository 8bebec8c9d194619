"""What amd-smi and the kernel say is read right or not at all, and nothing makes the doctor crash: recorded outputs.

The tool is faked by a script on PATH that prints a recorded output, the kernel by a tree of small files.
"""

import json
import re
import time
from dataclasses import asdict, fields

from helpers.doctor import kernel, tools
from helpers.doctor.cards import Card
from helpers.doctor.machine import Machine, read_amd
from tests.doctor.faked import FIXTURES, RECORDED, hip, output_of, plant

import pytest

TREES = json.loads((FIXTURES / "sysfs.json").read_text(encoding="utf-8"))


def whole(kind, facts: dict) -> dict:
    """The facts with None for every field that they do not name."""
    return {f.name: None for f in fields(kind)} | facts


def test_the_recorded_outputs_name_their_source_and_cover_the_cards_of_the_guide():
    assert len(RECORDED) >= 18
    assert all(case["source"] and re.match(r"20\d\d", case["date"]) for case in RECORDED)
    wanted = ("MI210", "MI300A", "MI300X", "MI350X", "W7900", "RX 7900", "RX 9070", "Strix Halo")
    assert all(any(card in case["title"] for case in RECORDED) for card in wanted)


@pytest.mark.parametrize("case", RECORDED, ids=lambda c: c["title"])
def test_recorded_output_is_read_right(case):
    assert {c.index: asdict(c) for c in tools.parse(case["output"]).cards} == {
        i: whole(Card, {"index": i} | facts) for i, facts in case["cards"].items()
    }


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8, 0.95])
def test_output_that_ends_early_leaves_gaps_and_no_wrong_values(cut):
    for case in RECORDED:
        lines = case["output"].splitlines()
        for card in tools.parse("\n".join(lines[: int(cut * len(lines))])).cards:
            for name in ("name", "gfx", "total", "used", "compute_partition", "bus"):
                assert getattr(card, name) in (None, case["cards"][card.index].get(name)), (case["title"], name)


# --- the kernel's files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TREES, ids=lambda c: c["title"])
def test_the_kernels_files_are_read_right(case, tmp_path):
    reading = kernel.read(plant(tmp_path, case["files"]))
    assert [asdict(c) for c in reading.cards] == [
        whole(Card, {"index": i} | facts) for i, facts in enumerate(case["cards"])
    ]
    assert [p._asdict() for p in reading.processes] == case["processes"]


def test_no_kernel_files_are_no_cards(tmp_path):
    assert kernel.read(tmp_path).cards == kernel.read_nvidia(tmp_path).cards == []


def test_an_nvidia_gpu_is_named_by_its_driver_and_measured_by_torch(tmp_path):
    information = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 72\nBus Location: \t 0000:1b:00.0"
    files = {"proc/driver/nvidia/gpus/0000:1b:00.0/information": information}
    reading = kernel.read_nvidia(plant(tmp_path, files))
    assert [(c.name, c.bus) for c in reading.cards] == [("NVIDIA H200", "0000:1b:00.0")]
    seen = hip({"bus": "0000:1b:00.0", "gfx": None, "temperature": 27, "power": 76.5, "total": 150e9})
    (device,) = Machine(nvidia=reading, probes=seen).devices
    assert (device.name, device.temperature, device.power, device.total) == ("NVIDIA H200", 27, 76.5, 150e9)


# --- amd-smi on PATH ------------------------------------------------------------------------------------------------

MI300X = {
    "static --json": output_of("MI300X, static as JSON, amd-smi 26 and later"),
    "metric --json": output_of("MI300X, metric as JSON, two cards, one silent on its power"),
}


def test_amd_smi_is_asked_for_json_and_its_answers_add_up(tools_on_path):
    tools_on_path(MI300X)
    reading = tools.ask_amd()
    first = reading.cards[0]
    assert (first.name, first.gfx, first.total) == ("AMD Instinct MI300X", "gfx942", 196592 * 2**20)
    assert (first.used, first.power, reading.troubles) == (17153 * 2**20, 612.0, [])


def test_text_is_read_where_json_is_refused(tools_on_path):
    old = {"--json": "!echo 'error: unrecognized arguments: --json' >&2; exit 2"}
    tools_on_path(old | {"static": output_of("Radeon PRO W7900, static as text"), "": "!exit 1"})
    reading = tools.ask_amd()
    assert (reading.cards[0].name, reading.cards[0].total) == ("Radeon Pro W7900", 49152 * 2**20)
    assert any("unrecognized arguments" in trouble for trouble in reading.troubles)


def test_the_kernel_fills_what_amd_smi_leaves_open(tools_on_path, tmp_path):
    tools_on_path({"static": output_of("MI210, static as text"), "": "!exit 1"})
    card = "sys/class/drm/card1/device/"
    files = {card + "vendor": "0x1002", card + "mem_info_vram_total": "68702699520", card + "mem_info_vram_used": "7"}
    (found,) = read_amd(plant(tmp_path / "root", files), seconds=5).cards
    assert (found.name, found.total, found.used) == ("AMD Instinct MI210", 68702699520, 7)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("!exit 0", "ended with code 0: no output"),
        ("!exit 127", "ended with code 127: no output"),
        ("!echo cannot open /dev/kfd >&2; exit 1", "cannot open /dev/kfd"),
        ("!kill -9 $$", "ended with code -9"),
        ("!printf '\\377\\376\\000garbage'", "nothing that could be understood"),
        ("[{", "nothing that could be understood"),
        ('{"gpu_data": 7}', "nothing that could be understood"),
        ('[1, null, "x", {"gpu": "all"}, {"gpu": {}}]', "nothing that could be understood"),
        ('{"card0": null, "card1": "x", "system": []}', "nothing that could be understood"),
        ("GPU[0] : :\nGPU[99999999999] \nGPU: x\n| BDF\n|  |  |\n", "nothing that could be understood"),
    ],
)
def test_a_tool_that_fails_says_so_and_yields_no_card(tools_on_path, answer, reason):
    tools_on_path({"": answer})
    reading = tools.ask_amd()
    assert reading.cards == [] and reason in " ".join(reading.troubles)


def test_a_tool_that_hangs_is_left_behind_once_and_named(tools_on_path):
    tools_on_path({"": "!sleep 60 & sleep 60"})
    start = time.monotonic()
    assert set(tools.ask_amd(seconds=0.3).troubles) == {"amd-smi gave no answer within 0.3 s"}
    assert time.monotonic() - start < 10


def test_a_tool_that_cannot_be_started_is_named(tools_on_path, tmp_path):
    tools_on_path({"": ""})
    (tmp_path / "bin" / "amd-smi").write_text("#!/no/such/interpreter\n")
    assert "could not be started" in tools.ask_amd().troubles[0]
