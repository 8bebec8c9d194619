"""Recorded outputs, made-up trees of the kernel's files, and what the trials of a ROCm build would have returned."""

import json
import re
from pathlib import Path

from helpers.doctor.cards import Card

FIXTURES = Path(__file__).parents[1] / "fixtures"


def recorded(name: str) -> list[dict]:
    """The cases of a file of recorded outputs."""
    cases = []
    for block in re.split(r"^#### ", (FIXTURES / name).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, _, output = block.partition("\n----\n")
        title, *lines = head.splitlines()
        case = dict(line.split(": ", 1) for line in lines)
        cards = [_sizes(card) for card in json.loads(case["cards"])]
        cases.append(case | {"title": title, "cards": cards, "output": output})
    return cases


def _sizes(card: dict) -> Card:
    return Card(**{k: int(v[:-4]) * 2**20 if str(v).endswith(" MiB") else v for k, v in card.items()})


RECORDED = recorded("amd-smi.txt")


def output_of(title: str) -> str:
    """What the tool printed in one recorded case."""
    (found,) = [case["output"] for case in RECORDED if case["title"] == title]
    return found


def plant(root: Path, files: dict[str, str]) -> Path:
    """A tree of small files below root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="utf-8")
    return root


ON_CPU = {
    "torch_sees": {"version": "2.13.0+cpu", "hip": None, "cuda": None, "devices": [], "built_for": []},
    "bf16": {"case": "right", "error": "0.3 %"},
    "attention": {"case": "right", "error": "2e-6 %", "kernels": "flash (causal)", "forms": ""},
    "triton": {"skipped": "a GPU is needed"},
    "four_bits": {"case": "right", "error": "9.2 %", "version": "0.50.2", "library": "libbitsandbytes_cpu.so"},
    "speed": {"n": 1024, "fp32": 0.1, "bf16": 0.2, "copy": 20.0},
    "packages": {"case": "work", "names": "trl 1.16.0"},
}


def hip(*devices: dict, built_for=("gfx90a", "gfx942", "gfx1100")) -> dict:
    """Probes of a ROCm build of torch that sees these devices."""
    default = {"name": "AMD Instinct MI300X", "total": 206e9, "free": 205e9, "integrated": False, "bus": None}
    default |= {"gfx": "gfx942:sramecc+:xnack-"}
    seen = {"version": "2.13.0+rocm7.1", "hip": "7.1.52802", "cuda": None, "built_for": list(built_for)}
    return ON_CPU | {
        "torch_sees": seen | {"devices": [default | device for device in devices]},
        "speed": {"n": 8192, "fp32": 100.0, "bf16": 640.0, "copy": 3900.0},
        "triton": {"case": "right", "error": "0.3 %"},
    }


FILES = {"dev/kfd": "", "dev/dri/renderD128": ""}
CARD = Card("AMD Instinct MI300X", "gfx942", 206e9, 1e9)


def levels(findings: dict[str, list], check: str) -> list[str]:
    """The levels of the findings of one check."""
    return [finding.level for finding in findings.get(check, [])]
