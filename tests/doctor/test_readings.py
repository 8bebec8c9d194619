"""What amd-smi and the kernel say is read right or not at all, and nothing makes the doctor crash: recorded outputs.

The tool is faked by a script on PATH that prints a recorded output, the kernel by a tree of small files.
"""

import json
import re
import time

from helpers.doctor import cards
from helpers.doctor.cards import Card, Process
from helpers.doctor.machine import Machine, read_amd
from tests.doctor.faked import FIXTURES, RECORDED, hip, output_of, plant

import pytest

TREES = json.loads((FIXTURES / "sysfs.json").read_text(encoding="utf-8"))


def test_the_recorded_outputs_name_their_source_and_cover_the_cards_of_the_guide():
    assert len(RECORDED) >= 11
    assert all(case["source"] and re.match(r"20\d\d", case["date"]) for case in RECORDED)
    wanted = ("MI210", "MI300A", "MI300X", "MI350X", "W7900", "RX 7900", "RX 9070", "Strix Halo")
    assert all(any(card in case["title"] for case in RECORDED + TREES) for card in wanted)


@pytest.mark.parametrize("case", RECORDED, ids=lambda c: c["title"])
def test_recorded_output_is_read_right(case):
    assert cards.parse(case["output"]) == case["cards"]


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8, 0.95])
def test_output_that_ends_early_leaves_gaps_and_no_wrong_values(cut):
    for case in RECORDED:
        lines = case["output"].splitlines()
        for card, whole in zip(cards.parse("\n".join(lines[: int(cut * len(lines))])), case["cards"], strict=False):
            for name in ("name", "gfx", "total", "used", "compute_partition", "bus"):
                assert getattr(card, name) in (None, getattr(whole, name)), (case["title"], name)


# --- the kernel's files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", TREES, ids=lambda c: c["title"])
def test_the_kernels_files_are_read_right(case, tmp_path):
    found, processes = cards.read_kernel(plant(tmp_path, case["files"]))
    assert found == [Card(**facts) for facts in case["cards"]]
    assert processes == [Process(**facts) for facts in case["processes"]]


def test_no_kernel_files_are_no_cards(tmp_path):
    assert cards.read_kernel(tmp_path) == ([], []) and cards.read_nvidia(tmp_path) == []


def test_an_nvidia_gpu_is_named_by_its_driver_and_measured_by_torch(tmp_path):
    information = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 72\nBus Location: \t 0000:1b:00.0"
    files = {"proc/driver/nvidia/gpus/0000:1b:00.0/information": information}
    found = cards.read_nvidia(plant(tmp_path, files))
    assert found == [Card("NVIDIA H200", bus="0000:1b:00.0")]
    seen = hip({"bus": "0000:1b:00.0", "gfx": None, "temperature": 27, "power": 76.5, "total": 150e9})
    (device,) = Machine(nvidia=found, probes=seen).devices
    assert (device.name, device.temperature, device.power, device.total) == ("NVIDIA H200", 27, 76.5, 150e9)


# --- amd-smi on PATH ------------------------------------------------------------------------------------------------

MI300X = {"static": output_of("MI300X divided into eight, static as text: the compute partition under today's name")}


def test_amd_smi_is_asked_for_its_text(tools_on_path):
    tools_on_path({"static": output_of("Radeon PRO W7900, static as text"), "": "!exit 1"})
    ((card,), trouble) = cards.ask_amd()
    assert (card.name, card.total, trouble) == ("Radeon Pro W7900", 49152 * 2**20, "")


def test_amd_smi_fills_what_the_kernel_leaves_open(tools_on_path, tmp_path):
    tools_on_path({"static": output_of("MI210, static as text"), "": "!exit 1"})
    card = "sys/class/drm/card1/device/"
    files = {card + "vendor": "0x1002", card + "mem_info_vram_total": "68702699520", card + "mem_info_vram_used": "7"}
    (found,) = read_amd(plant(tmp_path / "root", files), seconds=5)["amd"]
    assert (found.name, found.total, found.used) == ("AMD Instinct MI210", 68702699520, 7)


def test_cards_are_matched_by_their_address_and_not_by_their_order():
    first, second = Card("a", bus="0000:01:00.0"), Card("b", bus="0000:02:00.0")
    bare = [Card(bus=second.bus), Card(bus=first.bus), Card(bus="0000:03:00.0")]
    assert cards.matches(bare, [first, second]) == [second, first, Card()]
    assert cards.matches([Card(), Card()], [first, second]) == [first, second]
    assert cards.matches([Card()], [first, second]) == [Card()]  # which of the two it is, nobody knows


def test_files_that_cannot_be_read_in_time_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(cards, "read_kernel", lambda root: time.sleep(5))
    assert read_amd(tmp_path, seconds=0.1) == {
        "amd": [],
        "processes": [],
        "trouble": "/sys could not be read (TimeoutError)",
    }


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("!exit 0", "ended with code 0"),
        ("!exit 127", "ended with code 127"),
        ("!echo cannot open /dev/kfd >&2; exit 1", "cannot open /dev/kfd"),
        ("!kill -9 $$", "ended with SIGKILL"),
        ("!printf '\\377\\376\\000garbage'", "nothing that could be understood"),
        ('{"gpu_data": 7}', "nothing that could be understood"),
        ("GPU[0] : :\nGPU[99999999999] \nGPU: x\n| BDF\n|  |  |\n", "nothing that could be understood"),
    ],
)
def test_a_tool_that_fails_says_so_and_yields_no_card(tools_on_path, answer, reason):
    tools_on_path({"": answer})
    found, trouble = cards.ask_amd()
    assert found == [] and reason in trouble


def test_a_tool_that_hangs_is_left_behind_and_named(tools_on_path):
    tools_on_path({"": "!sleep 60 & sleep 60"})
    start = time.monotonic()
    assert cards.ask_amd(seconds=0.3) == ([], "amd-smi gave no answer within 0.3 s")
    assert time.monotonic() - start < 10


def test_a_tool_that_cannot_be_started_is_named(tools_on_path, tmp_path):
    tools_on_path({"": ""})
    (tmp_path / "bin" / "amd-smi").write_text("#!/no/such/interpreter\n")
    assert "could not be started" in cards.ask_amd()[1]
