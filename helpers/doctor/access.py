"""Findings about what can stand between torch and the GPU: the rights to its device files, variables that hide it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from helpers.doctor.finding import Finding, say
from helpers.doctor.hardware import INTEGRATED, describe
from helpers.doctor.machine import VISIBLE, Machine


def open_error(path: Path) -> str | None:
    """Why a device file cannot be opened for reading and writing, None if it can."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror
    return None


def _group_of(path: Path) -> tuple[int, str | None]:
    """Number and name of the group that owns a file; the name is None where it has none, as in a container."""
    try:
        return path.stat().st_gid, path.group()
    except KeyError:
        return path.stat().st_gid, None


def device_files(machine: Machine) -> Iterator[Finding]:
    """Device files of ROCm and their permissions"""
    where = "container" if machine.container else "host"
    if not machine.amd.cards and not machine.torch.get("hip"):
        return
    kfd = machine.root / "dev/kfd"
    renders = sorted((machine.root / "dev/dri").glob("renderD*"), key=lambda p: p.name)
    if machine.wsl and (machine.root / "dev/dxg").exists():
        yield say("device_files.wsl")
    elif not kfd.exists() or not renders:
        absent = "/dev/kfd" if not kfd.exists() else "/dev/dri/renderD*"
        yield say(f"device_files.absent_{where}", absent=absent)
    elif closed := next((path for path in (kfd, *renders) if open_error(path)), None):
        number, group = _group_of(closed)
        facts = {"path": f"/{closed.relative_to(machine.root)}", "error": open_error(closed), "number": number}
        facts |= {"group": group or "number", "join": group if group in ("render", "video") else "render,video"}
        yield say(f"device_files.closed_{where}", **facts)
    else:
        more = f" and {len(renders) - 3} more" if len(renders) > 3 else ""
        yield say("device_files.open", names=", ".join(p.name for p in renders[:3]) + more)


def visible_devices(machine: Machine) -> Iterator[Finding]:
    """Visible devices"""
    values = {name: machine.environment[name] for name in VISIBLE if name in machine.environment}
    variables = " and ".join(f"{name}={value!r}" for name, value in values.items())
    count, cards = len(machine.torch["devices"]), machine.cards
    if not cards and not count:
        return
    hiding = [name for name, value in values.items() if value.strip() in ("", "-1")]
    if cards and not count and hiding:
        yield say("visible.none", variables=variables, names=" ".join(hiding))
        return
    if "ROCR_VISIBLE_DEVICES" in values and len(values) > 1:
        yield say("visible.twice", variables=variables)
    small = [c for c in cards if c.gfx in INTEGRATED]
    if len(machine.devices) > 1 and small and len(small) < len(cards) and "ROCR_VISIBLE_DEVICES" not in values:
        large = next(c.index for c in cards if c.gfx not in INTEGRATED)
        yield say("visible.processor_graphics", card=describe(small[0]), large=large)
    elif count > 1:
        maker = "ROCR" if machine.torch.get("hip") else "CUDA"
        yield say("visible.several", count=count, switch=f"{maker}_VISIBLE_DEVICES")
    else:
        state = "One device is visible" if count else "No variable hides a GPU"
        yield say("visible.one", state=state + (f" ({variables})" if variables else ""))
