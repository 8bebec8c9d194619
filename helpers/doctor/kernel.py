"""What the kernel itself says about AMD GPUs, under /sys, /proc and /dev: works without any tool and without ROCm.

``root`` stands for / in all functions, so that a copied or a made-up tree can be read too.
"""

from __future__ import annotations

import re
from pathlib import Path

from helpers.doctor.cards import (
    Card,
    Process,
    Reading,
    address,
    architecture,
    card,
    celsius,
    driver,
    size,
    watts,
    words,
)

AMD = "0x1002"


def text(path: Path) -> str | None:
    """A small file as one stripped string, None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read(root: Path = Path("/")) -> Reading:
    """The cards and the processes on them.

    The compute driver (KFD) counts as HIP does: one entry for each device, so two for an MI250 and eight for an MI300X
    in CPX mode. Without it there are only the entries of the display driver, one for each card.
    """
    displays = _display_driver(root)
    nodes = _compute_driver(root)
    by_render = {facts["render"]: facts for facts in displays}
    devices = [node | by_render.get(node["render"], {}) | {"gfx": node["gfx"]} for node in nodes] or displays
    version = driver(text(root / "sys/module/amdgpu/version")) or (_kernel(root) if devices else None)
    cards = []
    for index, device in enumerate(devices):
        facts = {key: value for key, value in device.items() if key not in ("render", "id")}
        cards.append(card(index, {"driver": version} | facts))
    gpu_ids = {node["id"]: index for index, node in enumerate(nodes)}
    return Reading(cards, _processes(root, gpu_ids) if nodes else None)


def _display_driver(root: Path) -> list[dict]:
    names = _names(root)
    found = []
    for folder in sorted((root / "sys/class/drm").glob("card*"), key=lambda p: (len(p.name), p.name)):
        device = folder / "device"
        if not re.fullmatch(r"card\d+", folder.name) or text(device / "vendor") != AMD:
            continue
        slot = re.search(r"PCI_SLOT_NAME=(\S+)", text(device / "uevent") or "")
        key = tuple((text(device / part) or "").removeprefix("0x").lower() for part in ("device", "revision"))
        facts = {
            "render": next((int(p.name[7:]) for p in (device / "drm").glob("renderD*")), None),
            "bus": address(slot and slot[1]),
            "name": words(text(device / "product_name"), names.get(key)),
            "compute_partition": words(text(device / "current_compute_partition")),
            "memory_partition": words(text(device / "current_memory_partition")),
        }
        sizes = {"total": "vram_total", "used": "vram_used", "gtt_total": "gtt_total"}
        facts |= {name: size(text(device / f"mem_info_{file}")) for name, file in sizes.items()}
        found.append(facts | _sensors(device))
    return found


def _sensors(device: Path) -> dict[str, float | None]:
    folder = next(iter(sorted(device.glob("hwmon/hwmon*"))), device)

    def scaled(name: str, scale: float) -> float | None:
        value = text(folder / name) or ""
        return int(value) / scale if value.lstrip("-").isdigit() else None

    return {
        "temperature": celsius(scaled("temp2_input", 1000), scaled("temp1_input", 1000)),
        "power": watts(scaled("power1_average", 1e6), scaled("power1_input", 1e6)),
    }


def _compute_driver(root: Path) -> list[dict]:
    """One entry for each device that can compute; CPUs, which are nodes too, have no architecture."""
    found = []
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("[0-9]*")
    for node in sorted(nodes, key=lambda p: int(p.name)):
        properties = dict(re.findall(r"^(\w+) (\d+)$", text(node / "properties") or "", re.MULTILINE))
        if gfx := architecture(int(properties.get("gfx_target_version", 0))):
            bank = re.search(r"^size_in_bytes (\d+)$", text(node / "mem_banks/0/properties") or "", re.MULTILINE)
            facts = {"render": int(properties.get("drm_render_minor", 0)), "id": text(node / "gpu_id")}
            found.append(facts | {"gfx": gfx, "total": size(bank and bank[1])})
    return found


def _names(root: Path) -> dict[tuple[str, str], str]:
    """Names of products by device and revision, from the list that libdrm installs, if it is there."""
    lines = (text(root / "usr/share/libdrm/amdgpu.ids") or "").splitlines()
    parts = [[part.strip() for part in line.split(",", 2)] for line in lines if line.count(",") >= 2]
    return {(device.lower(), revision.lower()): name for device, revision, name in parts}


def _processes(root: Path, gpu_ids: dict[str | None, int]) -> list[Process]:
    found = []
    for folder in (root / "sys/class/kfd/kfd/proc").glob("[0-9]*"):
        name = text(root / "proc" / folder.name / "comm")
        for gpu_id, index in gpu_ids.items():
            if held := size(text(folder / f"vram_{gpu_id}")):
                found.append(Process(int(folder.name), name, held, index))
    return sorted(found, key=lambda p: (p.gpu, p.pid))


def _kernel(root: Path) -> str | None:
    """A driver that comes with the kernel has no version of its own."""
    match = re.match(r"([\d.]+(?:-\d+)?)", text(root / "proc/sys/kernel/osrelease") or "")
    return f"of Linux {match[1]}" if match else None


def read_nvidia(root: Path = Path("/")) -> Reading:
    """The names of NVIDIA GPUs; everything else about them comes from torch."""
    cards = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        facts = dict(re.findall(r"^(\w[\w ]*): *\t* *(.+)$", text(file) or "", re.MULTILINE))
        cards.append(Card(len(cards), words(facts.get("Model")), bus=address(facts.get("Bus Location"))))
    return Reading(cards)
