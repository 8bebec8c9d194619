"""The checks: which finding applies to what is known of a machine, and to what the trials saw."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from helpers.doctor.cards import Card
from helpers.doctor.finding import TEXTS, Finding, gb, say
from helpers.doctor.machine import KNOWN, VISIBLE, Machine
from helpers.settings import ROOT

import psutil


def computer(machine: Machine) -> Iterator[Finding]:
    """Processor, memory, disk, system."""
    cpu = re.search(r"^model name\s*: (.+)$", machine.says("proc/cpuinfo") or "", re.MULTILINE)
    main, disk = psutil.virtual_memory(), shutil.disk_usage(ROOT).free
    place = ", in WSL" if machine.wsl else ", in a container" if machine.place == "container" else ""
    facts = {"free": gb(main.available), "total": gb(main.total), "disk": gb(disk)}
    facts |= {"name": cpu[1] if cpu else platform.machine(), "threads": psutil.cpu_count()}
    facts["system"] = f"Python {platform.python_version()} on {platform.system()}{place}"
    yield say("computer.is" if disk > 5e9 else "computer.full", **facts)


def describe(card: Card) -> str:
    """A card in words: "AMD Instinct MI300X (gfx942, 206 GB)"."""
    details = ", ".join(x for x in (card.gfx, gb(card.total)) if x)
    return (card.name or "a GPU of unknown name") + (f" ({details})" if details else "")


def product(machine: Machine) -> Iterator[Finding]:
    """Which GPU there is, and whether torch can see it."""
    torch, hip, cards = machine.torch, machine.torch.get("hip"), machine.cards
    failed = machine.probes.get("torch_sees", {}).get("failed")
    words = [describe(c) for c in machine.devices]
    several = ", ".join(f"{words.count(w)} x {w}" if words.count(w) > 1 else w for w in dict.fromkeys(words))
    if failed:
        case = "torch_failed"
    elif torch["devices"]:
        case = "seen"
    elif machine.amd or machine.says("sys/class/kfd/kfd/topology/generation_id"):
        case = "unseen_by_rocm" if hip else "torch_without_rocm"
        if cards and all(c.gfx and c.gfx not in KNOWN["in_wheels"] for c in cards):
            case = "no_wheel"
    elif cards:
        case = "unseen_by_cuda"
    elif machine.wsl and (hip or machine.rocm):
        case = "wsl_unseen" if hip else "wsl_without_rocm"
    else:
        case = "rocm_without_gpu" if hip else "none"
    build = f"torch {torch.get('version', '(version unknown)')}"
    yield say(f"gpu.{case}", reason=failed, build=build, cards=several or "an AMD GPU")


def open_error(path: Path) -> str | None:
    """Why a device file cannot be opened for reading and writing, None if it can."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror
    return None


def device_files(machine: Machine) -> Iterator[Finding]:
    """The device files of ROCm and their permissions."""
    if not machine.amd and not machine.torch.get("hip"):
        return
    kfd = machine.root / "dev/kfd"
    renders = sorted(machine.root.glob("dev/dri/renderD*"))
    if machine.wsl:
        yield say("device_files.wsl")
    elif not kfd.exists() or not renders:
        absent = "/dev/dri/renderD*" if kfd.exists() else "/dev/kfd"
        yield say(f"device_files.absent_{machine.place}", absent=absent)
    elif closed := next((path for path in (kfd, *renders) if open_error(path)), None):
        facts = {"path": f"/{closed.relative_to(machine.root)}", "error": open_error(closed)}
        yield say(f"device_files.closed_{machine.place}", number=closed.stat().st_gid, **facts)
    else:
        yield say("device_files.open", count=len(renders))


def visible_devices(machine: Machine) -> Iterator[Finding]:
    """What variables leave of the devices."""
    values = {name: machine.environment[name] for name in VISIBLE if name in machine.environment}
    variables = " and ".join(f"{name}={value!r}" for name, value in values.items())
    count, cards = len(machine.torch["devices"]), machine.cards
    hiding = [name for name, value in values.items() if value.strip() in ("", "-1")]
    small = [c for c in cards if c.gfx in KNOWN["integrated"]]
    large = [c for c in cards if c.gfx not in KNOWN["integrated"]]
    if not cards and not count:
        return
    if cards and not count and hiding:
        yield say("visible.none", variables=variables, names=" ".join(hiding))
        return
    if "ROCR_VISIBLE_DEVICES" in values and len(values) > 1:
        yield say("visible.twice", variables=variables)
    if len(machine.devices) > 1 and small and large and "ROCR_VISIBLE_DEVICES" not in values:
        yield say("visible.processor_graphics", card=describe(small[0]), large=cards.index(large[0]))
    elif count > 1:
        yield say("visible.several", count=count, maker="ROCR" if machine.torch.get("hip") else "CUDA")
    else:
        state = "One device is visible" if count else "No variable hides a GPU"
        yield say("visible.one", state=state + (f" ({variables})" if variables else ""))


def kernels(machine: Machine) -> Iterator[Finding]:
    """Whether torch has kernels for this architecture."""
    built, override = machine.torch.get("built_for") or [], machine.environment.get("HSA_OVERRIDE_GFX_VERSION")
    if not machine.torch.get("hip") or not machine.devices:
        return
    if override or (built and machine.devices[0].gfx):
        case = "override" if override else "built" if machine.gfx in built else "not_built"
        yield say(f"kernels.{case}", override=override, gfx=machine.gfx, built=", ".join(built))


def versions(machine: Machine) -> Iterator[Finding]:
    """The versions of ROCm and of the driver."""
    if not machine.amd and not machine.torch.get("hip"):
        return
    driver = machine.says("sys/module/amdgpu/version") or f"of Linux {machine.says('proc/sys/kernel/osrelease')}"
    hip = ".".join((machine.torch.get("hip") or "").split(".")[:2])
    installed = f"ROCm {machine.rocm} installed" if machine.rocm else "no ROCm in /opt/rocm (torch brings its own)"
    parts = [f"driver {driver}", installed] + ([f"torch built for ROCm {hip}"] if hip else [])
    far = hip and machine.rocm and hip.split(".")[0] != machine.rocm.split(".")[0]
    yield say("versions.far" if far else "versions.near", versions="; ".join(parts))


def memory(machine: Machine) -> Iterator[Finding]:
    """What is free of the GPU memory, and who holds the rest."""
    for index, card in enumerate(machine.devices[:8]):
        seen = machine.torch["devices"][index]["free"] if machine.torch["devices"] else None
        left = card.total - card.used if card.total and card.used is not None else None
        if not card.total or (seen is None and left is None):
            continue
        # HIP does not count what a desktop holds, and has called more free than there is
        free = min(n for n in (seen, left, card.total) if n is not None)
        held = [p for p in machine.processes if p.gpu == index and p.memory > 0.02 * card.total][:4]
        owners = ", ".join(f"{p.name or 'a process'} ({p.pid}) holds {gb(p.memory)}" for p in held)
        case = "free"
        if free < 0.8 * card.total and card.gfx not in KNOWN["integrated"]:
            case = "held" if held else "taken"
        facts = {"index": index, "free": gb(free), "total": gb(card.total), "owners": owners and f"; {owners}"}
        yield say(f"memory.{case}", pids=",".join(str(p.pid) for p in held), **facts)


def parts(machine: Machine) -> Iterator[Finding]:
    """Cards that appear as several devices, and memory that is shared."""
    cards, seen = machine.devices, machine.torch["devices"]
    if split := next((c for c in cards if c.compute_partition not in (None, "SPX")), None):
        memory = split.memory_partition or "memory mode unknown"
        yield say("parts.divided", compute=split.compute_partition, memory=memory)
    if any(re.search(r"MI250|MI200", c.name or "") for c in cards):
        yield say("parts.two_dies")
    integrated = cards and (cards[0].gfx in KNOWN["integrated"] or (seen and seen[0]["integrated"]))
    if integrated and cards[0].gtt_total:
        yield say("parts.shared", total=gb(cards[0].total) or "an unknown amount", more=gb(cards[0].gtt_total))


def sensors(machine: Machine) -> Iterator[Finding]:
    """Temperature and power, or why amd-smi cannot read the card, which torch or the kernel may still see."""
    if "no answer" in machine.trouble:
        yield say("sensors.hang", trouble=machine.trouble)
    elif machine.trouble:
        no_driver = re.search(r"driver.not.(initiali[sz]ed|loaded)|amdgpu", machine.trouble, re.IGNORECASE)
        case = f"no_driver_{machine.place}" if no_driver else "silent"
        if machine.wsl and no_driver:
            case = "wsl"
        elif machine.devices:
            case = "not_needed"
        yield say(f"sensors.{case}", trouble=machine.trouble)
    elif machine.devices:
        values = ((machine.devices[0].temperature, "°C"), (machine.devices[0].power, "W"))
        state = ", ".join(f"{value:.0f} {unit}" for value, unit in values if value is not None)
        yield say("sensors.read" if state else "sensors.unknown", state=state)


def tried(machine: Machine, name: str) -> Iterator[Finding]:
    """What a trial says of itself, or why it has no result.

    A failure is "unusable", if the series can do without it; else a crash on a GPU is a problem, and silence is unknown.
    """
    result = machine.probes.get(name, {"failed": "it was not tried"})
    reason, case = result.get("failed") or result.get("skipped"), result.get("case", "unusable")
    if "skipped" in result:
        case = "skipped"
    elif reason and re.search(r"C compiler|Python\.h", reason):
        case = "no_compiler"
    if case not in TEXTS[name]:
        crashed = machine.torch["devices"] and re.search("ended with SIG|Error", reason)
        name, case = "all", "crashed" if crashed else "not_read"
    where = "On the GPU" if machine.torch["devices"] else "On the processor"
    yield say(f"{name}.{case}", **{"where": where, "gfx": machine.gfx, "reason": reason} | result)


def speed(machine: Machine) -> Iterator[Finding]:
    """The speed against what the maker states."""
    result, roof = machine.probes.get("speed", {}), machine.peak
    if "bf16" not in result:
        yield from tried(machine, "speed")
        return
    product = f"A matrix product (n = {result['n']}) runs at {result['bf16']:.3g} TFLOP/s in bf16"
    facts = {"product": product, "copy": f"a copy at {result['copy']:,.0f} GB/s"}
    if roof:
        a, b = result["bf16"] / roof.tflops, result["copy"] / roof.bandwidth
        facts |= {"a": f"{a:.0%} of the {roof.tflops:,.0f}", "b": f"{b:.0%} of {roof.bandwidth:,.0f}"}
        yield replace(say("speed.slow" if a < 0.2 or b < 0.3 else "speed.share", **facts), source=roof.source)
    else:
        times = result["bf16"] / result["fp32"]
        case = "unlisted" if machine.torch["devices"] else "fp32_here" if times < 1 else "cpu"
        yield say(f"speed.{case}", times=f"{times:.1f}", **facts)


CHECKS = {"Computer": computer, "GPU": product, "Device files": device_files, "Visible devices": visible_devices}
CHECKS |= {
    "Kernels": kernels,
    "Versions": versions,
    "GPU memory": memory,
    "Shared or divided": parts,
    "Sensors": sensors,
}
TRIALS = {"Packages": "packages", "bf16": "bf16", "Attention": "attention", "4 bits": "four_bits", "Triton": "triton"}
CHECKS |= {title: partial(tried, name=name) for title, name in TRIALS.items()} | {"Speed": speed}
