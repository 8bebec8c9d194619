"""Findings about the GPU itself: which one, torch's build and kernels for it, versions, memory, partitions, sensors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from helpers.doctor.cards import Card
from helpers.doctor.finding import Finding, gb, ok, problem, warning
from helpers.doctor.machine import VISIBLE, Machine

ROCM_DOCS = "https://rocm.docs.amd.com/"
INSTALL = ROCM_DOCS + "en/latest/install/rocm.html"
DRIVERS = ROCM_DOCS + "projects/install-on-linux/en/latest/reference/user-kernel-space-compat-matrix.html"
UNIFIED = ROCM_DOCS + "en/latest/reference/system-optimization/rdna3-5.html"
WHEELS = "https://docs.pytorch.org/get-started/locally/"
ISSUES = "https://github.com/ROCm/legacy-rocm-build/issues/"
NO_KERNELS = "https://github.com/pytorch/pytorch/issues/164346"
FREE_MEMORY = "https://github.com/ggml-org/llama.cpp/issues/24906"

REBUILD = "Remove .venv and run `make setup`: it takes torch for ROCm where it finds /opt/rocm or /dev/kfd."
# Architectures in the wheels of PyTorch for ROCm (2.13, ROCm 7.1 and 7.2)
IN_WHEELS = {
    "gfx900", "gfx906", "gfx908", "gfx90a", "gfx942", "gfx950", "gfx1030", "gfx1100", "gfx1101", "gfx1102", "gfx1103",
    "gfx1150", "gfx1151", "gfx1200", "gfx1201",
}  # fmt: skip
# Graphics inside a processor, which computes in main memory
INTEGRATED = {
    "gfx902", "gfx90c", "gfx1033", "gfx1035", "gfx1036", "gfx1037", "gfx1103", "gfx1150", "gfx1151", "gfx1152",
}  # fmt: skip


def called(card: Card) -> str:
    """A card in words: "AMD Instinct MI300X (gfx942, 206 GB)"."""
    details = ", ".join(x for x in (card.gfx, gb(card.total)) if x)
    return (card.name or "a GPU of unknown name") + (f" ({details})" if details else "")


def _several(cards: list[Card]) -> str:
    words = [called(c) for c in cards]
    return ", ".join(f"{words.count(w)} x {w}" if words.count(w) > 1 else w for w in dict.fromkeys(words))


def product(machine: Machine) -> Iterator[Finding]:
    """The GPU, and whether torch can see it"""
    torch, cards = machine.torch, machine.cards
    build = f"torch {torch.get('version', '(version unknown)')}"
    usable = [c for c in cards if c.gfx is None or c.gfx in IN_WHEELS]
    if "failed" in machine.probes.get("torch_sees", {}):
        reason = machine.probes["torch_sees"]["failed"]
        yield problem(f"torch could not be asked: {reason}.", "Run `make setup`, or remove .venv and run it again.")
    elif torch["devices"]:
        here = machine.devices
        yield ok(
            f"{called(here[0])}: {build} sees it as cuda:0" + (f", and {len(here) - 1} more." * (len(here) > 1) or ".")
        )
    elif machine.amd.cards or machine.says("sys/class/kfd/kfd/topology/generation_id"):
        seen = _several(cards) or "an AMD GPU"
        if cards and not usable:
            yield ok(
                f"The only GPU is {seen}, for which PyTorch has no kernels: the series runs on the CPU.", source=WHEELS
            )
        elif not torch.get("hip"):
            yield problem(
                f"This machine has {seen}, but {build} is not a build for ROCm and cannot see it.", REBUILD, WHEELS
            )
        else:
            yield problem(
                f"This machine has {seen}, but {build}, a build for ROCm, sees no GPU.",
                "See the findings on device files and visible devices below; if they are ok, restart after installing "
                "the driver, and look for errors with `sudo dmesg | grep amdgpu`.", INSTALL,
            )  # fmt: skip
    elif cards:
        yield problem(
            f"This machine has {_several(cards)}, but {build} sees no GPU.",
            f"Check {VISIBLE[2]}; if it is not set, remove .venv and run `make setup` for a build of torch with CUDA.",
            WHEELS,
        )  # fmt: skip
    elif torch.get("hip"):
        yield problem(f"{build} is a build for ROCm, but no AMD GPU was found.", "Install the driver, or on a machine "
                      "without an AMD GPU remove .venv and run `make setup`.", INSTALL)  # fmt: skip
    else:
        yield ok("No GPU here: the series runs on the CPU, with the profile `small`.")


def kernels(machine: Machine) -> Iterator[Finding]:
    """Kernels of torch for this architecture"""
    override = machine.environment.get("HSA_OVERRIDE_GFX_VERSION")
    if not machine.torch.get("hip") or not machine.devices:
        return
    gfx, built = machine.devices[0].gfx, machine.torch.get("built_for") or []
    if override:
        yield warning(f"HSA_OVERRIDE_GFX_VERSION={override} makes ROCm take the GPU for another one, which can hang or "
                      "give wrong numbers.", "Unset it if this torch has kernels for the GPU itself.",
                      ISSUES + "4557")  # fmt: skip
    elif gfx and built and gfx not in built:
        yield problem(f"This torch has no kernels for {gfx}; it was built for {', '.join(built)}.", "Set ROCM_INDEX to a "
                      "newer ROCm in `make setup`, or hide this GPU with ROCR_VISIBLE_DEVICES.", NO_KERNELS)  # fmt: skip
    elif gfx and built:
        yield ok(f"torch was built for {gfx} among others.")


def versions(machine: Machine) -> Iterator[Finding]:
    """Versions of ROCm and of the driver"""
    if not machine.amd.cards and not machine.torch.get("hip"):
        return
    driver = next((c.driver for c in machine.amd.cards if c.driver), None)
    hip = ".".join((machine.torch.get("hip") or "").split(".")[:2])
    parts = [f"driver {driver}" if driver else "driver version not told"]
    parts.append(f"ROCm {machine.rocm} installed" if machine.rocm else "no ROCm in /opt/rocm (torch brings its own)")
    parts += [f"torch built for ROCm {hip}"] if hip else []
    sentence = "; ".join(parts) + "."
    if hip and machine.rocm and hip.split(".")[0] != machine.rocm.split(".")[0]:
        yield warning(sentence, "AMD tests a driver with the two releases before and after its own: install the driver "
                      "of a ROCm close to that of torch, or take torch for the ROCm installed.", DRIVERS)  # fmt: skip
    else:
        yield ok(sentence, source=DRIVERS)


def memory(machine: Machine) -> Iterator[Finding]:
    """Memory of the GPU, and who holds it"""
    for index, card in enumerate(machine.devices[:8]):
        seen = machine.torch["devices"][index] if machine.torch["devices"] else {}
        free = seen.get("free", card.total - card.used if card.total and card.used is not None else None)
        if not card.total or free is None:
            continue
        if free > card.total:
            yield warning(f"GPU {index}: the driver reports more memory free ({gb(free)}) than there is ({gb(card.total)}).",
                          "Plan with the smaller number.", ISSUES + "6004")  # fmt: skip
            continue
        if card.used is not None:
            free = min(free, card.total - card.used)  # HIP does not count what a desktop holds
        held = [
            p for p in machine.amd.processes or [] if p.gpu in (None, index) and (p.memory or 0) > 0.02 * card.total
        ]
        owners = ", ".join(f"{p.name or 'a process'} ({p.pid}) holds {gb(p.memory)}" for p in held[:4])
        sentence = f"GPU {index}: {gb(free)} of {gb(card.total)} free" + (f"; {owners}." if owners else ".")
        if free < 0.8 * card.total and card.gfx not in INTEGRATED:
            end = " ".join(str(p.pid) for p in held[:4])
            yield warning(sentence, f"End what you do not need (`ps -fp {end.replace(' ', ',')}` shows it)." if end else "Look "
                          "for other users and for notebooks that still run; a desktop holds some too.", FREE_MEMORY)  # fmt: skip
        else:
            yield ok(sentence)


def parts(machine: Machine) -> Iterator[Finding]:
    """Cards that appear as several devices, and memory that is shared"""
    cards = machine.devices
    split = next((c for c in cards if c.compute_partition not in (None, "SPX")), None)
    if split:
        yield warning(
            f"The card is divided ({split.compute_partition}, {split.memory_partition}): each device is a part of it, and "
            "tools may show the memory of the whole card for each part.",
            "To train on the whole card, the administrator sets `amd-smi set --compute-partition SPX`.", ISSUES + "4750",
        )  # fmt: skip
    if any(re.search(r"MI250|MI200", c.name or "") for c in cards):
        yield ok("An MI250 is two devices with 64 GiB each. A run uses one of them: half of the card.")
    one = cards[0] if cards else None
    if one and (one.gfx in INTEGRATED or any(d["integrated"] for d in machine.torch["devices"][:1])) and one.gtt_total:
        yield ok(f"The GPU shares main memory: {gb(one.total)} are set aside for it, and it may use {gb(one.gtt_total)} more.",
                 "For larger models raise the limit: kernel parameter ttm.pages_limit, in pages of 4 KiB.", UNIFIED)  # fmt: skip


def tools(machine: Machine) -> Iterator[Finding]:
    """Tools of the makers"""
    for trouble in dict.fromkeys(machine.amd.troubles + machine.nvidia.troubles):
        hangs = "no answer" in trouble
        yield warning(
            f"Could not be read: {trouble}.",
            "A tool that hangs mostly means a GPU that hangs: `sudo dmesg | grep -i -e amdgpu -e nvrm`, then restart."
            * hangs,
            ISSUES + "5745" if hangs else "",
        )
    if machine.cards and not machine.amd.troubles + machine.nvidia.troubles:
        hot = machine.devices[0]
        state = ", ".join(x for x in (f"{hot.temperature:.0f} °C" if hot.temperature is not None else "",
                                      f"{hot.power:.0f} W" if hot.power is not None else "") if x)  # fmt: skip
        yield ok(f"GPU 0: {state}." if state else "Temperature and power are not told here.")
