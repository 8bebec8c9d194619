"""Findings about the GPU itself: which one, torch's build and kernels for it, versions, memory, partitions, sensors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from helpers.doctor.cards import Card
from helpers.doctor.finding import Finding, gb, say
from helpers.doctor.machine import VISIBLE, Machine

# Architectures in the wheels of PyTorch for ROCm (2.13, ROCm 7.1 and 7.2)
IN_WHEELS = {
    f"gfx{a}"
    for a in [
        "900",
        "906",
        "908",
        "90a",
        "942",
        "950",
        "1030",
        "1100",
        "1101",
        "1102",
        "1103",
        "1150",
        "1151",
        "1200",
        "1201",
    ]
}
# Graphics inside a processor, which computes in main memory
INTEGRATED = {f"gfx{a}" for a in ["902", "90c", "1033", "1035", "1036", "1037", "1103", "1150", "1151", "1152"]}


def describe(card: Card) -> str:
    """A card in words: "AMD Instinct MI300X (gfx942, 206 GB)"."""
    details = ", ".join(x for x in (card.gfx, gb(card.total)) if x)
    return (card.name or "a GPU of unknown name") + (f" ({details})" if details else "")


def product(machine: Machine) -> Iterator[Finding]:
    """The GPU, and whether torch can see it"""
    torch, cards = machine.torch, machine.cards
    words = [describe(c) for c in cards]
    several = ", ".join(f"{words.count(w)} x {w}" if words.count(w) > 1 else w for w in dict.fromkeys(words))
    facts = {"build": f"torch {torch.get('version', '(version unknown)')}", "cards": several or "an AMD GPU"}
    amd = machine.amd.cards or machine.says("sys/class/kfd/kfd/topology/generation_id")
    if "failed" in machine.probes.get("torch_sees", {}):
        yield say("gpu.torch_failed", reason=machine.probes["torch_sees"]["failed"])
    elif torch["devices"]:
        more = f", and {len(machine.devices) - 1} more" if len(machine.devices) > 1 else ""
        yield say("gpu.seen", card=describe(machine.devices[0]), more=more, **facts)
    elif amd and cards and not any(c.gfx is None or c.gfx in IN_WHEELS for c in cards):
        yield say("gpu.no_wheel", **facts)
    elif amd:
        yield say("gpu.unseen_by_rocm" if torch.get("hip") else "gpu.torch_without_rocm", **facts)
    elif cards:
        yield say("gpu.unseen_by_cuda", variable=VISIBLE[2], **facts)
    elif machine.wsl and (machine.root / "dev/dxg").exists() and (torch.get("hip") or machine.rocm):
        yield say("gpu.wsl_unseen" if torch.get("hip") else "gpu.wsl_without_rocm", **facts)
    else:
        yield say("gpu.rocm_without_gpu" if torch.get("hip") else "gpu.none", **facts)


def kernels(machine: Machine) -> Iterator[Finding]:
    """Kernels of torch for this architecture"""
    if not machine.torch.get("hip") or not machine.devices:
        return
    gfx, built = machine.devices[0].gfx, machine.torch.get("built_for") or []
    if override := machine.environment.get("HSA_OVERRIDE_GFX_VERSION"):
        yield say("kernels.override", override=override)
    elif gfx and built:
        yield say("kernels.built" if gfx in built else "kernels.not_built", gfx=gfx, built=", ".join(built))


def versions(machine: Machine) -> Iterator[Finding]:
    """Versions of ROCm and of the driver"""
    if not machine.amd.cards and not machine.torch.get("hip"):
        return
    driver = next((c.driver for c in machine.amd.cards if c.driver), None)
    hip = ".".join((machine.torch.get("hip") or "").split(".")[:2])
    parts = [f"driver {driver}" if driver else "driver version unknown"]
    parts.append(f"ROCm {machine.rocm} installed" if machine.rocm else "no ROCm in /opt/rocm (torch brings its own)")
    parts += [f"torch built for ROCm {hip}"] if hip else []
    far = hip and machine.rocm and hip.split(".")[0] != machine.rocm.split(".")[0]
    yield say("versions.far" if far else "versions.near", versions="; ".join(parts))


def memory(machine: Machine) -> Iterator[Finding]:
    """Memory of the GPU, and who holds it"""
    for index, card in enumerate(machine.devices[:8]):
        seen = machine.torch["devices"][index] if machine.torch["devices"] else {}
        left = card.total - card.used if card.total and card.used is not None else None
        free = seen.get("free", left)
        if not card.total or free is None:
            continue
        facts = {"index": index, "total": gb(card.total)}
        if free > card.total:
            yield say("memory.strange", free=gb(free), **facts)
            continue
        free = min(free, free if left is None else left)  # HIP does not count what a desktop holds
        processes = [p for p in machine.amd.processes or [] if p.gpu in (None, index)]
        held = [p for p in processes if (p.memory or 0) > 0.02 * card.total][:4]
        owners = ", ".join(f"{p.name or 'a process'} ({p.pid}) holds {gb(p.memory)}" for p in held)
        facts |= {"free": gb(free), "owners": f"; {owners}" if owners else ""}
        taken = free < 0.8 * card.total and card.gfx not in INTEGRATED
        case = ("held" if held else "taken") if taken else "free"
        yield say(f"memory.{case}", pids=",".join(str(p.pid) for p in held), **facts)


def parts(machine: Machine) -> Iterator[Finding]:
    """Cards that appear as several devices, and memory that is shared"""
    cards = machine.devices
    if split := next((c for c in cards if c.compute_partition not in (None, "SPX")), None):
        yield say(
            "parts.divided", compute=split.compute_partition, memory=split.memory_partition or "memory mode unknown"
        )
    if any(re.search(r"MI250|MI200", c.name or "") for c in cards):
        yield say("parts.two_dies")
    integrated = cards and (cards[0].gfx in INTEGRATED or any(d["integrated"] for d in machine.torch["devices"][:1]))
    if integrated and cards[0].gtt_total:
        yield say("parts.shared", total=gb(cards[0].total) or "an unknown amount", more=gb(cards[0].gtt_total))


def tools(machine: Machine) -> Iterator[Finding]:
    """Tools of the makers: their own sentence where they cannot read the card, which torch or the kernel may still see"""
    troubles = list(dict.fromkeys(machine.amd.troubles + machine.nvidia.troubles))
    healthy = machine.torch["devices"] or machine.cards
    for trouble in troubles:
        if "no answer" in trouble:
            yield say("tools.hang", trouble=trouble)
        elif re.search(r"driver.not.(initiali[sz]ed|loaded)", trouble, re.IGNORECASE) and machine.wsl:
            yield say("tools.wsl", trouble=trouble)
        elif healthy:
            yield say("tools.not_needed", trouble=trouble)
        else:
            unloaded = re.search(r"amdgpu|driver", trouble) and "amd-smi" in trouble
            place = "container" if machine.container else "host"
            yield say(f"tools.no_driver_{place}" if unloaded else "tools.silent", trouble=trouble)
    if machine.cards and not troubles:
        first = machine.devices[0]
        state = [f"{first.temperature:.0f} °C"] if first.temperature is not None else []
        state += [f"{first.power:.0f} W"] if first.power is not None else []
        yield say("tools.read" if state else "tools.no_sensors", state=", ".join(state))
