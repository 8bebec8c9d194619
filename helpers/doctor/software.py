"""Findings about what was tried (arithmetic, attention, 4 bits, speed), the packages, and the settings of the machine."""

import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import wraps

from helpers.doctor.finding import TEXTS, Finding, gb, say
from helpers.doctor.machine import Machine
from helpers.settings import ROOT

import psutil


def of_trial(judge: Callable[[Machine, dict], Finding]) -> Callable[[Machine], list[Finding]]:
    """A check out of the judgement of the trial of that name, for when it was skipped or failed too.

    A failure is "unusable", if the series can do without it; else a crash on a GPU is a problem, and silence is unknown.
    """
    name = judge.__name__

    @wraps(judge)
    def check(machine: Machine) -> list[Finding]:
        result = machine.probes.get(name, {"failed": "it was not tried"})
        reason = result.get("failed") or result.get("skipped")
        if reason is None:
            return [judge(machine, result)]
        crashed = machine.torch["devices"] and re.search("ended with SIG|Error", reason)
        case = "skipped" if "skipped" in result else "unusable"
        if re.search(r"C compiler|Python\.h", reason):
            case = "no_compiler"
        known = f"{name}.{case}" if case in TEXTS[name] else "all.crashed" if crashed else "all.not_read"
        return [say(known, reason=reason, gfx=machine.gfx)]

    return check


def computer(machine: Machine) -> Iterator[Finding]:
    """Computer: processor, memory, disk, system"""
    cpu = re.search(r"^model name\s*: (.+)$", machine.says("proc/cpuinfo") or "", re.MULTILINE)
    main, disk = psutil.virtual_memory(), shutil.disk_usage(ROOT).free
    place = ", in WSL" if machine.wsl else ", in a container" if machine.place == "container" else ""
    facts = {"free": gb(main.available), "total": gb(main.total), "disk": gb(disk)}
    facts |= {"name": cpu[1] if cpu else platform.machine(), "threads": psutil.cpu_count()}
    facts["system"] = f"Python {platform.python_version()} on {platform.system()}{place}"
    yield say("computer.is" if disk > 5e9 else "computer.full", **facts)


@of_trial
def packages(machine: Machine, result: dict) -> Finding:
    """Packages: each really imported"""
    broken = " and ".join(f"{name} ({state})" for name, (_, state) in result.items() if state != "works")
    names = broken or ", ".join(f"{name} {version}" for name, (version, _) in result.items())
    return say("packages.broken" if broken else "packages.work", names=names)


@of_trial
def bf16(machine: Machine, result: dict) -> Finding:
    """bf16: arithmetic"""
    wrong = result["error"] > 0.02
    return say("bf16.wrong" if wrong else "bf16.right", where=machine.where, error=f"{min(result['error'], 10):.2%}")


@of_trial
def attention(machine: Machine, result: dict) -> Finding:
    """Attention: fused (SDPA), forward and backward, and the kernels that really run"""
    forms: dict[str, list[str]] = {}
    for form, kernel in result["kernels"].items():
        forms.setdefault(kernel, []).append(form)
    kernels = ", ".join(f"{kernel} ({', '.join(names)})" for kernel, names in forms.items())
    facts = {"where": machine.where, "error": f"{max(result['error'], 1e-6):.1g}", "gfx": machine.gfx}
    case = "right"
    if result["error"] > 0.05:
        case = "wrong" if result["error"] < 1e9 else "nan"
    elif "math" in forms and machine.torch["devices"]:
        allowed = machine.environment.get("TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL") == "1"
        case = "math_cuda" if not machine.torch.get("hip") else "math_still" if allowed else "math"
    return say(f"attention.{case}", kernels=kernels, forms=" and ".join(forms.get("math", [])), **facts)


@of_trial
def four_bits(machine: Machine, result: dict) -> Finding:
    """4 bits: what bitsandbytes stores, and products with it"""
    library, hip = result["library"], machine.torch.get("hip") or ""
    product, wrong = max(result["products"].items(), key=lambda item: item[1])
    case = "right"
    if not 0.02 < result["error"] < 0.2:  # 9 % is what 16 levels leave of normal numbers
        case = "stored_wrong"
    elif wrong > 0.05:
        case = "product_wrong"
    elif machine.torch["devices"] and "cpu" in library:
        case = "library_of_cpu"
    elif hip and library != f"libbitsandbytes_rocm{''.join(hip.split('.')[:2])}.so":
        case = "other_rocm"
    facts = {"where": machine.where, "error": f"{result['error']:.1%}", "version": result["version"], "hip": hip}
    return say(f"four_bits.{case}", product=product, wrong=f"{min(wrong, 10):.0%}", library=library, **facts)


@of_trial
def triton(machine: Machine, result: dict) -> Finding:
    """Triton: the language of the fused kernels"""
    case = "right" if result["error"] < 0.02 else "wrong"
    return say(f"triton.{case}", error=f"{min(result['error'], 10):.1%}", gfx=machine.gfx)


@of_trial
def speed(machine: Machine, result: dict) -> Finding:
    """Speed: against what the maker states"""
    product = f"{machine.where}, a matrix product (n = {result['n']}) runs at {result['bf16']:.3g} TFLOP/s in bf16"
    facts = {"product": product, "copy": f"a copy at {result['copy']:,.0f} GB/s"}
    if roof := machine.peak:
        a, b = result["bf16"] / roof.tflops, result["copy"] / roof.bandwidth
        facts |= {"a": f"{a:.0%} of the {roof.tflops:,.0f}", "b": f"{b:.0%} of {roof.bandwidth:,.0f}"}
        return replace(say("speed.slow" if a < 0.2 or b < 0.3 else "speed.share", **facts), source=roof.source)
    times = result["bf16"] / result["fp32"]
    case = "unlisted" if machine.torch["devices"] else "fp32_here" if times < 1 else "cpu"
    return say(f"speed.{case}", times=f"{times:.1f}", **facts)
