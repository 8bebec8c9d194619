"""What the kernel itself says about GPUs, under /sys, /proc and /dev: works without any tool and without ROCm.

``root`` stands for / in all functions, so that a copied or a made-up tree can be read too.
"""

from __future__ import annotations

import re
from pathlib import Path

from helpers.doctor.cards import Card, Process, Reading, address, architecture, between, card, driver, size, words

AMD = "0x1002"
_SIZES = {"total": "vram_total", "used": "vram_used", "gtt_total": "gtt_total"}
_NODES = "sys/class/kfd/kfd/topology/nodes"


def text(path: Path) -> str | None:
    """A small file as one stripped string, None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read(root: Path = Path("/")) -> Reading:
    """The AMD cards and the processes on them.

    The compute driver (KFD) counts as HIP does: one entry for each device, so two for an MI250 and eight for an MI300X
    in CPX mode. Without it there are only the entries of the display driver, one for each card.
    """
    nodes = _compute_driver(root)
    displays = _display_driver(root)
    devices = [node | displays.get(node["render"], {}) | {"gfx": node["gfx"]} for node in nodes] or displays.values()
    release = re.match(r"[\d.]+(?:-\d+)?", text(root / "proc/sys/kernel/osrelease") or "")
    version = driver(text(root / "sys/module/amdgpu/version")) or (release and f"of Linux {release[0]}")
    cards = []
    for facts in devices:
        known = {key: value for key, value in facts.items() if key not in ("render", "id")}
        cards.append(card(len(cards), known | {"driver": version}))
    return Reading(cards, _processes(root, [node["id"] for node in nodes]))


def _display_driver(root: Path) -> dict[int, dict]:
    """The facts of each card by the number of its render node."""
    lines = (text(root / "usr/share/libdrm/amdgpu.ids") or "").splitlines()  # device, revision, name of the product
    ids = [[part.strip().lower() if i < 2 else part.strip() for i, part in enumerate(x.split(",", 2))] for x in lines]
    names = {tuple(parts[:2]): parts[2] for parts in ids if len(parts) == 3}
    found = {}
    for folder in sorted((root / "sys/class/drm").glob("card*"), key=lambda p: (len(p.name), p.name)):
        device = folder / "device"
        if not re.fullmatch(r"card\d+", folder.name) or text(device / "vendor") != AMD:
            continue
        key = tuple((text(device / part) or "").removeprefix("0x").lower() for part in ("device", "revision"))
        slot = re.search(r"PCI_SLOT_NAME=(\S+)", text(device / "uevent") or "")
        facts = {"bus": address(slot and slot[1]), "name": words(text(device / "product_name"), names.get(key))}
        modes = ("compute_partition", "memory_partition")
        facts |= {mode: words(text(device / f"current_{mode}")) for mode in modes}
        facts |= {name: size(text(device / f"mem_info_{file}")) for name, file in _SIZES.items()}
        render = next((int(p.name[7:]) for p in (device / "drm").glob("renderD*")), -len(found))
        found[render] = facts | _sensors(device)
    return found


def _sensors(device: Path) -> dict[str, float | None]:
    folder = next(iter(sorted(device.glob("hwmon/hwmon*"))), device)
    values = {
        file: text(folder / f"{file}") for file in ("temp2_input", "temp1_input", "power1_average", "power1_input")
    }
    heat, heat2, power, power2 = (int(v) if v and v.lstrip("-").isdigit() else None for v in values.values())
    watts = between(0, 5e9, power, power2)  # in millionths
    celsius = between(100, 150_000, heat, heat2)  # in thousandths; 0 is a sensor that is off
    return {"temperature": celsius and celsius / 1000, "power": watts if watts is None else watts / 1e6}


def _compute_driver(root: Path) -> list[dict]:
    """One entry for each device that can compute; CPUs, which are nodes too, have no architecture."""
    found = []
    for node in sorted((root / _NODES).glob("[0-9]*"), key=lambda p: int(p.name)):
        properties = dict(re.findall(r"^(\w+) (\d+)$", text(node / "properties") or "", re.MULTILINE))
        if gfx := architecture(int(properties.get("gfx_target_version", 0))):
            bank = re.search(r"^size_in_bytes (\d+)$", text(node / "mem_banks/0/properties") or "", re.MULTILINE)
            facts = {"render": int(properties.get("drm_render_minor", 0)), "id": text(node / "gpu_id")}
            found.append(facts | {"gfx": gfx, "total": size(bank and bank[1])})
    return found


def _processes(root: Path, gpu_ids: list[str | None]) -> list[Process]:
    found = []
    for folder in (root / "sys/class/kfd/kfd/proc").glob("[0-9]*"):
        for index, gpu_id in enumerate(gpu_ids):
            if held := size(text(folder / f"vram_{gpu_id}")):
                found.append(Process(int(folder.name), text(root / "proc" / folder.name / "comm"), held, index))
    return sorted(found, key=lambda p: (p.gpu, p.pid))


def read_nvidia(root: Path = Path("/")) -> Reading:
    """The names of NVIDIA GPUs; everything else about them comes from torch."""
    cards = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        facts = dict(re.findall(r"^(\w[\w ]*):\s*(.+)$", text(file) or "", re.MULTILINE))
        cards.append(Card(len(cards), words(facts.get("Model")), bus=address(facts.get("Bus Location"))))
    return Reading(cards)
