"""Findings about what can stand between torch and the GPU: the rights to its device files, variables that hide it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from helpers.doctor.finding import Finding, ok, problem, warning
from helpers.doctor.hardware import INSTALL, INTEGRATED, ROCM_DOCS, called
from helpers.doctor.machine import VISIBLE, Machine

GROUPS = ROCM_DOCS + "projects/install-on-linux/en/latest/install/prerequisites.html"
ISOLATION = ROCM_DOCS + "projects/HIP/en/latest/reference/env_variables.html"
TWO_GPUS = "https://github.com/ROCm/TheRock/issues/3392"
CONTAINERS = "https://github.com/ROCm/ROCm-docker/issues/114"


def open_error(path) -> str | None:
    """Why a device file cannot be opened for reading and writing, None if it can."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror
    return None


def _group_of(path) -> tuple[int, str | None]:
    """Number and name of the group that owns a file; the name is None where it has none, as in a container."""
    import grp

    number = path.stat().st_gid
    try:
        return number, grp.getgrgid(number).gr_name
    except KeyError:
        return number, None


def device_files(machine: Machine) -> Iterator[Finding]:
    """Device files of ROCm and their permissions"""
    if not machine.amd.cards and not machine.torch.get("hip"):
        return
    kfd = machine.root / "dev/kfd"
    renders = sorted((machine.root / "dev/dri").glob("renderD*"), key=lambda p: p.name)
    if machine.wsl and (machine.root / "dev/dxg").exists():
        yield ok("Under WSL the GPU comes through /dev/dxg; there is no /dev/kfd.")
        return
    if not kfd.exists() or not renders:
        absent = "/dev/kfd" if not kfd.exists() else "/dev/dri/renderD*"
        remedy = (
            "Start the container with `--device /dev/kfd --device /dev/dri/renderD128` (see README)."
            if machine.container
            else "Install AMD's driver and restart; `lsmod | grep amdgpu` must name it."
        )
        yield problem(f"{absent} does not exist, so ROCm cannot reach the GPU.", remedy, INSTALL)
        return
    for path in (kfd, *renders):
        if error := open_error(path):
            number, group = _group_of(path)
            join = group if group in ("render", "video") else "render,video"
            remedy = (
                f"Start the container with `--group-add {number}`, the group's number on the host."
                if machine.container
                else f"`sudo usermod -aG {join} $USER`, then log out and in again."
            )
            yield problem(
                f"/{path.relative_to(machine.root)} cannot be opened ({error}); its group is {group or 'number'} {number}.",
                remedy, CONTAINERS if machine.container else GROUPS,
            )  # fmt: skip
            return
    names = ", ".join(p.name for p in renders[:3]) + (f" and {len(renders) - 3} more" if len(renders) > 3 else "")
    yield ok(f"/dev/kfd and {names} can be opened.", source=GROUPS)


def visible_devices(machine: Machine) -> Iterator[Finding]:
    """Visible devices"""
    values = {name: machine.environment[name] for name in VISIBLE if name in machine.environment}
    said = " and ".join(f"{name}={value!r}" for name, value in values.items())
    count, cards = len(machine.torch["devices"]), machine.cards
    if not cards and not count:
        return
    if cards and not count and (hiding := [n for n, v in values.items() if v.strip() in ("", "-1")]):
        yield problem(f"{said} hides every GPU.", f"`unset {' '.join(hiding)}`, then start again.", ISOLATION)
        return
    if "ROCR_VISIBLE_DEVICES" in values and len(values) > 1:
        yield warning(f"{said}: the second counts within what the first leaves, so numbers that are right for each alone "
                      "can hide all GPUs together.", "Keep ROCR_VISIBLE_DEVICES only.", ISOLATION)  # fmt: skip
    small = [c for c in cards if c.gfx in INTEGRATED]
    if len(machine.devices) > 1 and small and len(small) < len(cards) and "ROCR_VISIBLE_DEVICES" not in values:
        large = next(c.index for c in cards if c.gfx not in INTEGRATED)
        yield warning(f"{called(small[0])}, the graphics of the processor, is visible beside the card; this has crashed torch.",
                      f"`export ROCR_VISIBLE_DEVICES={large}` before you start Jupyter.", TWO_GPUS)  # fmt: skip
    elif count > 1:
        switch = "ROCR_VISIBLE_DEVICES" if machine.torch.get("hip") else "CUDA_VISIBLE_DEVICES"
        yield warning(f"{count} devices are visible; a run uses the first. Code that leaves it to the Trainer would split "
                      "each batch over all of them (DataParallel).", f"To choose, `export {switch}=0` or another number "
                      "before you start Jupyter.", ISOLATION)  # fmt: skip
    else:
        yield ok(("One device is visible" if count else "No variable hides a GPU") + (f" ({said})." if said else "."))
