"""Findings about what was tried (arithmetic, attention, 4 bits, speed), the packages, and the settings of the machine."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace

from helpers.doctor.finding import Finding, gb, say
from helpers.doctor.machine import Machine
from helpers.settings import ROOT

import psutil

EXPERIMENTAL = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"


def computer(machine: Machine) -> Iterator[Finding]:
    """The computer"""
    cpu = re.search(r"^model name\s*: (.+)$", machine.says("proc/cpuinfo") or "", re.MULTILINE)
    name = re.sub(r"\((R|TM)\)|\s+CPU\b.*|\s+\d+-Core Processor.*", "", cpu[1]).strip() if cpu else platform.machine()
    main = psutil.virtual_memory()
    system = platform.system() + (", in a container" if machine.container else ", in WSL" if machine.wsl else "")
    facts = {"free": gb(main.available), "total": gb(main.total), "python": platform.python_version()}
    yield say("computer.is", name=name, threads=psutil.cpu_count(), system=system, **facts)


def disk(machine: Machine) -> Iterator[Finding]:
    """Disk"""
    free = shutil.disk_usage(ROOT).free
    yield say("disk.full" if free < 5e9 else "disk.free", free=gb(free))


def packages(machine: Machine) -> Iterator[Finding]:
    """Packages, each really imported"""
    result = machine.probes.get("packages", {})
    if "failed" in result:
        yield say("all.not_read", reason=result["failed"])
        return
    broken = {name: state for name, (_, state) in result.items() if state != "works"}
    for name, state in broken.items():
        yield say("packages.broken", name=name, reason=state)
    if result and not broken:
        yield say("packages.work", names=", ".join(f"{name} {version}" for name, (version, _) in result.items()))


def _where(machine: Machine) -> str:
    return "On the GPU" if machine.torch["devices"] else "On the processor"


def _tried(machine: Machine, name: str) -> tuple[dict, Finding | None]:
    """The result of a trial, and a finding if it has none: a crash on a GPU is a problem, silence is unknown."""
    result = machine.probes.get(name, {"failed": "it was not tried"})
    if "failed" not in result:
        return result, None
    crashed = machine.torch["devices"] and ("ended with SIG" in result["failed"] or "Error" in result["failed"])
    return result, say("all.crashed" if crashed else "all.not_read", reason=result["failed"])


def bf16(machine: Machine) -> Iterator[Finding]:
    """Arithmetic in bf16"""
    result, failed = _tried(machine, "bf16")
    if failed:
        yield failed
        return
    wrong = not result["finite"] or result["error"] > 0.02
    error = f"{result['error']:.1%}" if wrong else f"{result['error']:.2%}"
    yield say("bf16.wrong" if wrong else "bf16.right", where=_where(machine), error=error)


def attention(machine: Machine) -> Iterator[Finding]:
    """Fused attention (SDPA), forward and backward, and the kernels that really run"""
    result, failed = _tried(machine, "attention")
    if failed:
        yield failed
        return
    kernels = result.get("kernels", {})
    on_math = [form for form, kernel in kernels.items() if kernel == "math"]
    if not result["finite"]:
        yield say("attention.nan")
    elif result["error"] > 0.05:
        yield say("attention.wrong", error=f"{result['error']:.0%}")
    elif on_math and machine.torch["devices"]:
        hip, tried = machine.torch.get("hip"), machine.environment.get(EXPERIMENTAL) == "1"
        case = "math_cuda" if not hip else "math_still" if tried else "math"
        yield say(f"attention.{case}", forms=" and ".join(on_math), gfx=machine.devices[0].gfx or "this card")
    else:
        by_kernel = {kernel: [f for f, k in kernels.items() if k == kernel] for kernel in kernels.values()}
        names = ", ".join(f"{kernel} ({', '.join(forms)})" for kernel, forms in by_kernel.items()) or "unknown"
        yield say("attention.right", where=_where(machine), error=f"{max(result['error'], 1e-6):.1g}", kernels=names)


def varlen(machine: Machine) -> Iterator[Finding]:
    """Attention over packed rows (varlen)"""
    result, failed = _tried(machine, "varlen")
    case = "skipped" if "skipped" in result else "unusable" if failed else "right"
    yield say(f"varlen.{case}", reason=result.get("skipped") or result.get("failed"))


def four_bits(machine: Machine) -> Iterator[Finding]:
    """4 bits (bitsandbytes): what is stored, and products with it"""
    result, failed = _tried(machine, "four_bits")
    if failed:
        yield say("four_bits.unusable", reason=failed.says)
        return
    library = result["library"] or "a library of unknown name"
    products = result.get("products", {})
    worst = max(products, key=products.get, default=None)
    facts = {"where": _where(machine), "error": f"{result['error']:.1%}", "version": result["version"]}
    facts |= {"library": library, "hip": machine.torch.get("hip") or "-"}
    hip = re.match(r"(\d+)\.(\d+)", facts["hip"])
    if not 0.02 < result["error"] < 0.2:  # 9 % is what 16 levels leave of normal numbers
        yield say("four_bits.stored_wrong", **facts)
    elif worst and products[worst] > 0.05:
        wrong = f"{min(products[worst], 10):.0%}"
        yield say("four_bits.product_wrong", product=worst, wrong=wrong, **facts)
    elif machine.torch["devices"] and "cpu" in library:
        yield say("four_bits.library_of_cpu", **facts)
    elif hip and library != f"libbitsandbytes_rocm{hip[1]}{hip[2]}.so":
        yield say("four_bits.other_rocm", **facts)
    else:
        yield say("four_bits.right", **facts)


def triton(machine: Machine) -> Iterator[Finding]:
    """Triton, the language of the fused kernels"""
    result, failed = _tried(machine, "triton")
    gfx = machine.devices[0].gfx if machine.devices else None
    if result.get("skipped"):
        yield say("triton.skipped", reason=result["skipped"])
    elif failed:
        case = "no_compiler" if re.search(r"C compiler|Python\.h", result["failed"]) else "unusable"
        yield say(f"triton.{case}", reason=result["failed"], gfx=gfx or "this card")
    else:
        case = "right" if result["error"] < 0.02 else "wrong"
        yield say(f"triton.{case}", error=f"{min(result['error'], 10):.1%}", gfx=gfx or "this card")


def speed(machine: Machine) -> Iterator[Finding]:
    """Speed, against what the maker states"""
    result, failed = _tried(machine, "speed")
    if failed:
        yield failed
        return
    product = f"{_where(machine)}, a matrix product (n = {result['n']}) runs at {result['bf16']:.3g} TFLOP/s in bf16"
    facts = {"product": product, "copy": f"a copy at {result['copy']:,.0f} GB/s"}
    facts["times"] = f"{result['bf16'] / result['fp32']:.1f}"
    if roof := machine.peak:
        shares = result["bf16"] / roof.tflops, result["copy"] / roof.bandwidth
        facts |= {"a": f"{shares[0]:.0%} of the {roof.tflops:,.0f}", "b": f"{shares[1]:.0%} of {roof.bandwidth:,.0f}"}
        slow = shares[0] < 0.2 or shares[1] < 0.3
        yield replace(say("speed.slow" if slow else "speed.share", **facts), source=roof.source)
    elif machine.torch["devices"]:
        yield say("speed.unlisted", **facts)
    else:
        yield say("speed.fp32_here" if result["bf16"] < result["fp32"] else "speed.cpu", **facts)


def advice(machine: Machine) -> Iterator[Finding]:
    """Settings that AMD advises"""
    if not machine.torch.get("hip") or not any(re.search(r"\bMI\d{3}", d.name or "") for d in machine.devices):
        return
    balancing = machine.says("proc/sys/kernel/numa_balancing") or "0"
    if balancing != "0":
        yield say("advice.balancing")
    if machine.environment.get("HIP_FORCE_DEV_KERNARG") != "1":
        yield say("advice.arguments")
    elif balancing == "0":
        yield say("advice.followed")
