"""The GPUs of this machine: what the kernel's files say, and amd-smi where they leave gaps. Never imports torch.

A value that is missing, "N/A" or impossible (16 EB in use) is None, never 0.
"""

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from helpers.doctor.probes import complaints, run

RANGES = {
    "total": (1, 2**50),
    "used": (0, 2**50),
    "gtt_total": (1, 2**50),
    "temperature": (0.1, 150),
    "power": (0, 5e3),
}


class Process(NamedTuple):
    """A process that holds GPU memory, in bytes; ``gpu`` is the index of the card."""

    pid: int
    name: str | None
    memory: float
    gpu: int


@dataclass(frozen=True)
class Card:
    """One GPU. Memory in bytes, ``temperature`` in degrees Celsius, ``power`` in watts; unknown is None."""

    name: str | None = None
    gfx: str | None = None
    total: float | None = None
    used: float | None = None
    gtt_total: float | None = None  # main memory that the GPU may use
    temperature: float | None = None
    power: float | None = None
    compute_partition: str | None = None  # SPX is the whole card, CPX one of its dies
    memory_partition: str | None = None  # NPS1 is all memory as one
    bus: str | None = None  # the address on the PCI bus, as 0000:03:00.0: the one name that all sources share

    def filled(self, other: "Card") -> "Card":
        """This card, its gaps filled from another description of it."""
        return Card(**{name: getattr(other, name) if mine is None else mine for name, mine in asdict(self).items()})


def believed(facts: dict) -> Card:
    """A card of those facts that can be right."""
    kept = {}
    for name, value in facts.items():
        if name in RANGES:
            kept[name] = value if value is not None and RANGES[name][0] <= value < RANGES[name][1] else None
        else:
            kept[name] = None if re.fullmatch(r"(?i)|n/a|none|unknown|0x[\da-f]+", value or "") else value
    if kept.get("total") and kept.get("used") and kept["used"] > 1.01 * kept["total"]:
        kept["used"] = None
    return Card(**kept)


def matches(cards: list[Card], known: list[Card]) -> list[Card]:
    """For each card what is known under its address, or, where no address is shared, in its place; else an empty one."""
    by_bus = {other.bus: other for other in known if other.bus}
    in_order = len(cards) == len(known) and not any(card.bus in by_bus for card in cards)
    return [by_bus.get(card.bus, known[i] if in_order else Card()) for i, card in enumerate(cards)]


def number(text: str | None, unit: float = 1) -> float | None:
    """The number that a text begins with, times its unit."""
    found = re.match(r"-?\d+(\.\d+)?", text or "")
    return float(found[0]) * unit if found else None


def says(root: Path, pattern: str) -> str | None:
    """The first file below root that matches a pattern and is not empty, as one stripped string."""
    for path in sorted(root.glob(pattern)):
        try:
            if text := path.read_text(encoding="utf-8", errors="replace").strip():
                return text
        except OSError:
            continue
    return None


# --- the kernel's files, which are there without any tool and without ROCm ------------------------------------------


def read_kernel(root: Path) -> tuple[list[Card], list[Process]]:
    """The AMD cards and the processes on them; ``root`` stands for /.

    The compute driver (KFD) counts as HIP does: one entry for each device, so two for an MI250 and eight for an MI300X
    in CPX mode. Without it there are only the entries of the display driver, one for each card.
    """
    displays = _display_driver(root)
    cards, processes = [], []
    for node in sorted(root.glob("sys/class/kfd/kfd/topology/nodes/[0-9]*"), key=lambda path: int(path.name)):
        properties = dict(re.findall(r"^(\w+) (\d+)$", says(node, "properties") or "", re.MULTILINE))
        version = int(properties.get("gfx_target_version", 0))  # major * 10000 + minor * 100 + step
        if not version:
            continue  # a CPU, which is a node too
        bank = re.search(r"^size_in_bytes (\d+)$", says(node, "mem_banks/0/properties") or "", re.MULTILINE)
        facts = {"total": number(bank and bank[1])} | displays.get(int(properties.get("drm_render_minor", 0)), {})
        for folder in root.glob("sys/class/kfd/kfd/proc/[0-9]*"):
            if held := number(says(folder, f"vram_{says(node, 'gpu_id')}")):
                name = says(root, f"proc/{folder.name}/comm")
                processes.append(Process(int(folder.name), name, held, len(cards)))
        cards.append(believed(facts | {"gfx": f"gfx{version // 10000}{version // 100 % 100}{version % 100:x}"}))
    return cards or [believed(facts) for facts in displays.values()], processes


def _display_driver(root: Path) -> dict[int, dict]:
    """The facts of each card by the number of its render node."""
    ids = re.findall(r"^(\w+),\s*(\w+),\s*(.+)$", says(root, "usr/share/libdrm/amdgpu.ids") or "", re.MULTILINE)
    names = {(device.lower(), revision.lower()): name.strip() for device, revision, name in ids}
    found = {}
    for device in sorted(root.glob("sys/class/drm/card*/device"), key=lambda path: (len(str(path)), path)):
        if says(device, "vendor") != "0x1002":  # AMD
            continue
        key = tuple((says(device, part) or "").removeprefix("0x").lower() for part in ("device", "revision"))
        slot = re.search(r"PCI_SLOT_NAME=(\S+)", says(device, "uevent") or "")
        heat = (number(says(device, f"hwmon/hwmon*/temp{sensor}_input"), 1e-3) for sensor in (2, 1))
        watts = says(device, "hwmon/hwmon*/power1_average") or says(device, "hwmon/hwmon*/power1_input")
        render = next((int(path.name[7:]) for path in device.glob("drm/renderD*")), -len(found))
        found[render] = {
            "name": says(device, "product_name") or names.get(key),
            "total": number(says(device, "mem_info_vram_total")),
            "used": number(says(device, "mem_info_vram_used")),
            "gtt_total": number(says(device, "mem_info_gtt_total")),
            "temperature": next((celsius for celsius in heat if celsius), None),  # 0 is a sensor that is off
            "power": number(watts, 1e-6),
            "compute_partition": says(device, "current_compute_partition"),
            "memory_partition": says(device, "current_memory_partition"),
            "bus": slot and slot[1].lower(),
        }
    return found


def read_nvidia(root: Path) -> list[Card]:
    """The names of NVIDIA GPUs; everything else about them comes from torch."""
    texts = [says(path, "information") or "" for path in sorted(root.glob("proc/driver/nvidia/gpus/*"))]
    facts = [dict(re.findall(r"^(\w[\w ]*):\s*(.+)$", text, re.MULTILINE)) for text in texts]
    return [Card(each.get("Model"), bus=each.get("Bus Location", "").strip().lower() or None) for each in facts]


# --- amd-smi --------------------------------------------------------------------------------------------------------


def ask_amd(seconds: float = 15) -> tuple[list[Card], str]:
    """The cards that amd-smi shows, or why it shows none; nothing of either if it is not installed."""
    path = shutil.which("amd-smi") or shutil.which("amd-smi", path="/opt/rocm/bin")
    if path is None:
        return [], ""
    printed, errors, ending = run([path, "static"], seconds)
    if cards := parse(printed):
        return cards, ""
    if words := complaints(errors) or complaints(printed) or errors.strip().splitlines():
        return [], f"amd-smi says: {words[0][:200]}"  # the first names the cause, the others consequences
    return [], f"amd-smi {ending or 'printed nothing that could be understood'}"


def parse(text: str) -> list[Card]:
    """The cards in what ``amd-smi static`` prints as text."""
    gpus: list[dict[str, str]] = []
    gpu, section = {}, ""
    for indent, key, value in re.findall(r"^( *)([A-Z][\w /%.-]*): ?(.*)$", text, re.MULTILINE):
        if not indent:
            gpu = {}  # of a processor or a network card, which is left out
            gpus += [gpu] if key == "GPU" and value.strip().isdigit() else []
        elif len(indent) == 4:
            section = key
        elif len(indent) == 8 and value.strip() != "N/A":
            gpu[f"{section}.{key}"] = value.strip()
    return [_smi_card(gpu) for gpu in gpus]


def _smi_card(gpu: dict[str, str]) -> Card:
    """A card out of values by section and key. amd-smi writes MB and means MiB."""

    def first(*places: str) -> str | None:
        return next((gpu[place] for place in places if place in gpu), None)

    return believed({
        "name": first("ASIC.MARKET_NAME", "BOARD.PRODUCT_NAME"),
        "gfx": first("ASIC.TARGET_GRAPHICS_VERSION"),
        "total": number(first("VRAM.SIZE"), 2**20),
        "compute_partition": first("PARTITION.ACCELERATOR_PARTITION", "PARTITION.COMPUTE_PARTITION"),
        "memory_partition": first("PARTITION.MEMORY_PARTITION"),
        "bus": (first("BUS.BDF") or "").lower(),
    })  # fmt: skip
