"""The doctor on recorded outputs: whatever a tool prints is read right or not at all, and nothing makes it crash.

Tools are faked by scripts on PATH that print a recorded output, the kernel by a tree of small files, torch by what the
probes would have returned.
"""

import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

from helpers.doctor import examine, finding, look, probes, smi, sysfs
from helpers.doctor.cards import Card, Process, Reading
from helpers.doctor.finding import Report
from helpers.doctor.machine import Machine, read_amd
from helpers.settings import ROOT

import pytest

FIXTURES = Path(__file__).parent / "fixtures"


def recorded(name: str) -> list[dict]:
    """The cases of a file of recorded outputs."""
    cases = []
    for block in re.split(r"^#### ", (FIXTURES / name).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, _, output = block.partition("\n----\n")
        title, *lines = head.splitlines()
        case = dict(line.split(": ", 1) for line in lines)
        cards = {i: _sizes(c) for i, c in enumerate(json.loads(case["cards"])) if c is not None}
        processes = json.loads(case["processes"]) if "processes" in case else None
        cases.append(case | {"title": title, "cards": cards, "processes": processes, "output": output})
    return cases


def _sizes(card: dict) -> dict:
    return {k: int(v[:-4]) * 2**20 if str(v).endswith(" MiB") else v for k, v in card.items()}


RECORDED = recorded("rocm-smi.txt") + recorded("amd-smi.txt")


def whole(kind, facts: dict) -> dict:
    """The facts with None for every field that they do not name."""
    return {f.name: None for f in fields(kind)} | facts


def test_there_are_many_recorded_outputs_each_with_its_source():
    assert len(RECORDED) >= 40
    assert all(case["source"] and re.match(r"20\d\d", case["date"]) for case in RECORDED)
    wanted = ("MI250", "MI300X", "MI355X", "W7900", "RX 7900", "Strix Halo")
    assert all(any(card in case["title"] for case in RECORDED) for card in wanted)


@pytest.mark.parametrize("case", RECORDED, ids=lambda c: c["title"])
def test_recorded_output_is_read_right(case):
    reading = smi.parse(case["output"])
    assert {c.index: asdict(c) for c in reading.cards} == {
        i: whole(Card, {"index": i} | facts) for i, facts in case["cards"].items()
    }
    expected = case["processes"]
    got = None if reading.processes is None else [asdict(p) for p in reading.processes]
    assert got == (None if expected is None else [whole(Process, p) for p in expected])


# --- the kernel's files -------------------------------------------------------------------------------------------


def plant(root: Path, files: dict[str, str]) -> Path:
    """A tree of small files below root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")
    return root


TREES = json.loads((FIXTURES / "sysfs.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", TREES, ids=lambda c: c["title"])
def test_the_kernels_files_are_read_right(case, tmp_path):
    reading = sysfs.read(plant(tmp_path, case["files"]))
    assert [asdict(c) for c in reading.cards] == [
        whole(Card, {"index": i} | facts) for i, facts in enumerate(case["cards"])
    ]
    got = None if reading.processes is None else [asdict(p) for p in reading.processes]
    assert got == (case["processes"] and [whole(Process, p) for p in case["processes"]])


def test_no_kernel_files_are_no_cards(tmp_path):
    assert sysfs.read(tmp_path).cards == []


# --- tools on PATH ------------------------------------------------------------------------------------------------


def output_of(title: str) -> str:
    (found,) = [case["output"] for case in RECORDED if case["title"] == title]
    return found


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Puts a tool on PATH: for words among its arguments the output, or a line of shell after "!"."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(name: str, answers: dict[str, str]) -> None:
        lines = ["#!/bin/sh", 'case " $* " in']
        for number, (words, answer) in enumerate(answers.items()):
            file = folder / f"{name}-{number}.out"
            file.write_text(answer, encoding="utf-8")
            command = answer[1:] if answer.startswith("!") else f"cat '{file}'"
            lines.append(f"*{words.replace(' ', '*')}*) {command};;" if words else f"*) {command};;")
        (folder / name).write_text("\n".join([*lines, "esac", ""]))
        (folder / name).chmod(0o755)

    return put


MI300X = {
    "static --json": output_of("MI300X, static as JSON, amd-smi 26 and later"),
    "metric --json": output_of("MI300X, metric as JSON, two cards, one silent on its power"),
    "process --json": '[{"gpu": 0, "process_list": [{"process_info": "No running processes detected"}]}]',
}


def test_amd_smi_is_asked_for_json_and_its_answers_add_up(tools):
    tools("amd-smi", MI300X)
    reading = smi.ask("amd-smi")
    first = reading.cards[0]
    assert (first.name, first.gfx, first.total, first.used, first.power) == (
        "AMD Instinct MI300X", "gfx942", 196592 * 2**20, 17153 * 2**20, 612.0,
    )  # fmt: skip
    assert reading.processes == [] and reading.troubles == []


def test_text_is_read_where_json_is_refused(tools):
    old = {"--json": "!echo 'error: unrecognized arguments: --json' >&2; exit 2"}
    tools("amd-smi", old | {"static": output_of("Radeon PRO W7900, static as text"), "": "!exit 1"})
    reading = smi.ask("amd-smi")
    assert (reading.cards[0].name, reading.cards[0].total) == ("Radeon Pro W7900", 49152 * 2**20)
    assert any("unrecognized arguments" in trouble for trouble in reading.troubles)


def test_the_summary_is_read_where_nothing_else_answers(tools):
    title = "two MI355X, summary table, amd-smi 26.2, ROCm 7.2"
    tools("amd-smi", {"static": "!exit 3", "metric": "!exit 3", "process": "!exit 3", "": output_of(title)})
    assert [c.name for c in smi.ask("amd-smi").cards] == ["AMD Instinct MI355X"] * 2


def test_rocm_smi_fills_what_amd_smi_leaves_open(tools, tmp_path):
    tools("amd-smi", {"static": output_of("MI210, static as text"), "": "!exit 1"})
    tools("rocm-smi", {"--json": '{"card0": {"GFX Version": "gfx90a", "VRAM Total Memory (B)": "68702699520", '
                                 '"VRAM Total Used Memory (B)": "11665408"}}'})  # fmt: skip
    (found,) = read_amd(tmp_path, seconds=5).cards
    assert (found.name, found.gfx, found.total) == ("AMD Instinct MI210", "gfx90a", 68702699520)


@pytest.mark.parametrize("tool", ["amd-smi", "rocm-smi", "nvidia-smi"])
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
def test_a_tool_that_fails_says_so_and_yields_no_card(tools, tool, answer, reason):
    tools(tool, {"": answer})
    reading = smi.nvidia() if tool == "nvidia-smi" else smi.ask(tool)
    assert reading.cards == [] and reason in " ".join(reading.troubles)


def test_a_tool_that_hangs_is_left_behind_once_and_named(tools):
    tools("rocm-smi", {"": "!sleep 60 & sleep 60"})
    start = time.monotonic()
    reading = smi.ask("rocm-smi", seconds=0.3)
    assert reading.troubles == ["rocm-smi gave no answer within 0.3 s"] and time.monotonic() - start < 10


def test_a_tool_that_cannot_be_started_is_named(tools, tmp_path):
    tools("amd-smi", {"": ""})
    (tmp_path / "bin" / "amd-smi").write_text("#!/no/such/interpreter\n")
    assert "could not be started" in smi.ask("amd-smi").troubles[0]


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8, 0.95])
def test_output_that_ends_early_leaves_gaps_and_no_wrong_values(cut):
    for case in RECORDED:
        lines = case["output"].splitlines()
        for card in smi.parse("\n".join(lines[: int(cut * len(lines))])).cards:
            for name in ("name", "gfx", "total", "used", "bus"):
                assert getattr(card, name) in (None, case["cards"][card.index].get(name)), (case["title"], name)


def test_nvidia_smi_is_read(tools):
    tools(
        "nvidia-smi",
        {
            "": "0, NVIDIA H200, 143771 MiB, 4 MiB, 27, 76.52 W, 580.95.05, 00000000:1B:00.0\n"
            "1, [N/A], [N/A], [N/A], [N/A], [N/A], x, [N/A]"
        },
    )
    first, second = smi.nvidia().cards
    assert (first.name, first.total, first.power, first.driver) == ("NVIDIA H200", 143771 * 2**20, 76.52, "580.95.05")
    assert second.total is second.used is second.power is None
    one = hip({"bus": "0000:1b:00.0"})["torch_sees"]  # CUDA_VISIBLE_DEVICES hides the other
    (device,) = Machine(nvidia=smi.nvidia(), probes={"torch_sees": one}).devices
    assert (device.temperature, device.power, device.used) == (27, 76.52, 4 * 2**20)


# --- findings -----------------------------------------------------------------------------------------------------

ON_CPU = {
    "torch_sees": {"version": "2.13.0+cpu", "hip": None, "cuda": None, "devices": [], "built_for": []},
    "bf16": {"finite": True, "error": 0.003},
    "attention": {"finite": True, "error": 2e-6},
    "varlen": {"skipped": "a GPU is needed"},
    "four_bits": {"version": "0.50.2", "library": "libbitsandbytes_cpu.so", "error": 0.092},
    "speed": {"n": 1024, "fp32": 0.1, "bf16": 0.2, "copy": 20.0},
    "packages": {"trl": ["1.16.0", "works"]},
}


def hip(*devices: dict, built_for=("gfx90a", "gfx942", "gfx1100")) -> dict:
    """Probes of a ROCm build of torch that sees these devices."""
    default = {"name": "AMD Instinct MI300X", "total": 206e9, "free": 205e9, "gfx": "gfx942:sramecc+:xnack-",
               "capability": None, "integrated": False, "bus": None}  # fmt: skip
    seen = {"version": "2.13.0+rocm7.1", "hip": "7.1.52802", "cuda": None, "built_for": list(built_for)}
    return ON_CPU | {
        "torch_sees": seen | {"devices": [default | device for device in devices]},
        "four_bits": ON_CPU["four_bits"] | {"library": "libbitsandbytes_rocm71.so"},
        "speed": {"n": 8192, "fp32": 100.0, "bf16": 640.0, "copy": 3900.0},
        "varlen": {"finite": True, "error": 0.004},
    }


FILES = {"dev/kfd": "", "dev/dri/renderD128": ""}
CARD = Card(0, "AMD Instinct MI300X", "gfx942", int(206e9), int(1e9), driver="6.16.6")


@pytest.fixture
def judged(tmp_path):
    """Findings by check for a machine with these probes, cards, files and variables."""

    def judge(probes=ON_CPU, cards=(), files=None, processes=None, **environment) -> dict[str, list]:
        root = plant(tmp_path / "root", FILES if files is None else files)
        machine = Machine(root, environment, Reading(list(cards), processes), Reading(), probes)
        found: dict[str, list] = {}
        for one in examine(machine):
            found.setdefault(one.check, []).append(one)
        return found

    return judge


def levels(found: dict[str, list], check: str) -> list[str]:
    return [finding.level for finding in found.get(check, [])]


def test_a_machine_without_a_gpu_gets_an_unalarming_table(judged):
    found = judged(files={})
    assert {level for check in found for level in levels(found, check)} == {"ok"}
    assert "runs on the CPU" in found["GPU"][0].says
    assert not {"Device files", "Visible devices", "Kernels", "Versions", "AMD's advice"} & set(found)


def test_a_good_instinct_is_all_ok(judged):
    found = judged(hip({}), [CARD], HIP_FORCE_DEV_KERNARG="1")
    assert {level for check in found for level in levels(found, check)} == {"ok"}
    assert "49% of the 1,307" in found["Speed"][0].says and "74% of 5,300" in found["Speed"][0].says


@pytest.mark.parametrize(
    ("name", "answers", "files", "product"),
    [
        ("amd-smi", MI300X, {}, "MI300X (gfx942, 206 GB)"),
        ("amd-smi", {"static": output_of("Radeon PRO W7900, static as text"), "": "!exit 1"}, {}, "Radeon Pro W7900"),
        (None, {}, TREES[0]["files"], "Radeon 8060S"),
    ],
    ids=["MI300X", "W7900", "Strix Halo"],
)
def test_a_torch_for_the_cpu_beside_an_amd_gpu_is_a_problem_with_its_remedy(
    tools, tmp_path, monkeypatch, name, answers, files, product
):
    monkeypatch.setattr("helpers.doctor.probes.ask", lambda names, *_: {n: ON_CPU[n] for n in names})
    if name:
        tools(name, answers)
    report = examine(look(plant(tmp_path / "root", FILES | files), {}))
    (finding,) = [f for f in report if f.check == "GPU"]
    assert finding.level == report.worst == "problem" and product in finding.says and "make setup" in finding.remedy


def test_a_rocm_build_that_sees_no_gpu_says_so(judged):
    found = judged(hip(), [CARD])
    assert levels(found, "GPU") == ["problem"] and "sees no GPU" in found["GPU"][0].says


def test_a_gpu_that_no_wheel_serves_leaves_the_cpu(judged):
    found = judged(ON_CPU, [Card(0, "Raphael", "gfx1036", 2**29)])
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
    monkeypatch.setattr("helpers.doctor.access.open_error", lambda path: error)
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
    cards = [Card(0, "AMD Radeon RX 7900 XTX", "gfx1100", 24 * 2**30), Card(1, "Raphael", "gfx1036", 2**29)]
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
    held = [Process(4711, "python3", int(90e9), 0), Process(5, "tiny", 10, 0)]
    taken = judged(hip({"free": 110e9}), [CARD], processes=held)["GPU memory"]
    assert taken[0].level == "warning" and "python3 (4711) holds 90 GB" in taken[0].says and "tiny" not in taken[0].says
    desktop = judged(hip({}), [replace(CARD, used=int(50e9))])["GPU memory"][0]  # HIP says 205 GB free
    assert desktop.level == "warning" and "156 GB of 206 GB free" in desktop.says
    strange = judged(hip({"free": 400e9}), [CARD])["GPU memory"][0]
    assert strange.level == "warning" and "more memory free" in strange.says


def test_parts_and_sharing_are_explained(judged):
    parted = judged(hip({}), [replace(CARD, compute_partition="CPX", memory_partition="NPS4")])
    assert levels(parted, "Shared or divided") == ["warning"] and "of the" not in parted["Speed"][0].says
    two = judged(hip({"name": "AMD Instinct MI250X/MI250", "gfx": "gfx90a"}, {"name": "AMD Instinct MI250X/MI250"}))
    assert "half of the card" in two["Shared or divided"][0].says
    halo = judged(
        hip({"gfx": "gfx1151", "name": "8060S", "integrated": True}),
        [Card(0, "8060S", "gfx1151", 2**32, gtt_total=96 * 2**30)],
    )
    assert "may use 103 GB more" in halo["Shared or divided"][0].says


@pytest.mark.parametrize(
    ("probe", "result", "check", "level"),
    [
        ("bf16", {"finite": False, "error": 1.0}, "bf16", "problem"),
        ("attention", {"finite": False, "error": None}, "Attention", "problem"),
        ("attention", {"finite": True, "error": 0.7}, "Attention", "problem"),
        ("attention", {"failed": "the process ended with SIGSEGV"}, "Attention", "problem"),
        ("attention", {"failed": "no answer within 60 s"}, "Attention", "warning"),
        ("varlen", {"failed": "RuntimeError: not supported"}, "Packed attention", "warning"),
        ("varlen", {"finite": False, "error": None}, "Packed attention", "warning"),
        ("four_bits", {"failed": "OSError: libamdhip64"}, "4 bits", "warning"),
        ("four_bits", {"version": "1", "library": None, "error": 1.4}, "4 bits", "problem"),
        ("four_bits", ON_CPU["four_bits"], "4 bits", "warning"),
        ("speed", {"n": 8192, "fp32": 90.0, "bf16": 100.0, "copy": 3900.0}, "Speed", "warning"),
        ("packages", {"trl": [None, "ImportError: x"]}, "Packages", "problem"),
        ("packages", {"failed": "the process ended with code 1"}, "Packages", "warning"),
        ("torch_sees", {"failed": "ModuleNotFoundError: No module named 'torch'"}, "GPU", "problem"),
    ],
)
def test_what_was_tried_and_failed(judged, probe, result, check, level):
    assert levels(judged(hip({}) | {probe: result}, [CARD]), check) == [level]


def test_an_unknown_card_gets_no_share_of_a_peak(judged):
    found = judged(hip({"name": "AMD Instinct MI999"}), [replace(CARD, name="AMD Instinct MI999")])["Speed"][0]
    assert found.level == "ok" and "%" not in found.says and "not in our list" in found.says


def test_a_check_that_fails_or_hangs_stops_no_other(monkeypatch, tmp_path):
    def broken(machine):
        raise RuntimeError("split into\nlines")

    monkeypatch.setattr(
        "helpers.doctor.CHECKS", {"a": broken, "b": lambda m: time.sleep(30), "c": lambda m: [finding.ok("x")]}
    )
    report = examine(Machine(tmp_path), seconds=0.2)
    assert [(f.check, f.level) for f in report] == [("a", "warning"), ("b", "warning"), ("c", "ok")]
    assert "RuntimeError: split into lines" in report[0].says and "no answer" in report[1].says


def test_probes_that_die_or_hang_cost_only_themselves(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\nfor a in $*; do case $a in good) echo '{\"x\": 1}';; dies) kill -11 $$;; hangs) sleep 60;; esac; done\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    found = probes.ask(["good", "dies", "hangs", "good2"], seconds=0.4)
    assert found["good"] == {"x": 1} and found["dies"] == {"failed": "the process ended with SIGSEGV"}
    assert found["hangs"] == {"failed": "no answer within 0.4 s"} and found["good2"] == {
        "failed": "the process ended with code 0"
    }


def test_the_report_is_escaped_and_says_each_level_in_words():
    report = Report([finding.problem("<b>`x`</b>", "do `y`", "https://a.b/?c&d"), finding.ok("fine")])
    html, text = report._repr_html_(), report.text(80)
    assert "<b>`" not in html and "&lt;b&gt;<code>x</code>" in html and 'href="https://a.b/?c&amp;d"' in html
    assert (
        "✗ problem" in text and "Do: do `y`" in text and text.endswith("1 problem, 1 ok") and report.worst == "problem"
    )
    assert "https" not in Report([finding.ok("fine", source="https://x")]).text(80)


@pytest.mark.parametrize(("torch", "code"), [({}, 0), ({"failed": "no torch"}, 1)])
def test_the_exit_code_is_non_zero_only_on_a_problem(tmp_path, torch, code):
    script = (
        "import sys\nfrom helpers.doctor import probes, machine\n"
        f"seen = {ON_CPU!r} | ({{'torch_sees': {torch!r}}} if {torch!r} else {{}})\n"
        "probes.ask = lambda names, *_: {n: seen[n] for n in names}\n"
        "import runpy; runpy.run_module('helpers.doctor', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    assert "GPU" in done.stdout and "torch" not in done.stderr


def test_the_doctor_never_imports_torch_itself():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, helpers.doctor; sys.exit('torch' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
    )
    assert done.returncode == 0
