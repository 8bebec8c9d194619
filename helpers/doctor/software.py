"""Findings about what was tried (arithmetic, attention, 4 bits, speed), the packages, and the settings of the machine."""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterator

from helpers.doctor.finding import Finding, gb, ok, problem, warning
from helpers.doctor.machine import Machine
from helpers.settings import ROOT

import psutil

AOTRITON = "https://github.com/pytorch/pytorch/issues/116176"
VARLEN = "https://github.com/pytorch/pytorch/pull/174105"
BITSANDBYTES = "https://huggingface.co/docs/bitsandbytes/v0.50.2/en/installation"
HIP_VARIABLES = "https://rocm.docs.amd.com/projects/HIP/en/latest/reference/env_variables.html"
TRAINING = "https://rocm.docs.amd.com/en/docs-6.3.3/how-to/rocm-for-ai/training/prerequisite-system-validation.html"


def computer(machine: Machine) -> Iterator[Finding]:
    """The computer"""
    cpu = re.search(r"^model name\s*: (.+)$", machine.says("proc/cpuinfo") or "", re.MULTILINE)
    name = re.sub(r"\((R|TM)\)|\s+CPU\b.*|\s+\d+-Core Processor.*", "", cpu[1]).strip() if cpu else platform.machine()
    main = psutil.virtual_memory()
    kind = ", in a container" if machine.container else ", in WSL" if machine.wsl else ""
    yield ok(f"{name}, {psutil.cpu_count()} threads, {gb(main.available)} of {gb(main.total)} main memory free, "
             f"Python {platform.python_version()} on {platform.system()}{kind}.")  # fmt: skip


def disk(machine: Machine) -> Iterator[Finding]:
    """Disk"""
    free = shutil.disk_usage(ROOT).free
    if free < 5e9:
        yield warning(f"Only {gb(free)} of disk are free here.", "Make room: models and results take 2 GB with the profile "
                      "`small`, and 60 GB with the profiles of 7 and 8 billion parameters.")  # fmt: skip
    else:
        yield ok(f"{gb(free)} free.")


def packages(machine: Machine) -> Iterator[Finding]:
    """Packages, each really imported"""
    result = machine.probes.get("packages", {})
    if "failed" in result:
        yield warning(f"Could not be read: {result['failed']}.")
        return
    broken = {name: said for name, (_, said) in result.items() if said != "works"}
    for name, said in broken.items():
        yield problem(f"{name} cannot be imported ({said}).", "Run `make setup` again.")
    if result and not broken:
        yield ok(", ".join(f"{name} {version}" for name, (version, _) in result.items()) + ".")


def _where(machine: Machine) -> str:
    return "On the GPU" if machine.torch["devices"] else "On the processor"


def _tried(machine: Machine, name: str) -> tuple[dict, Finding | None]:
    """The result of a probe, and a finding if it has none: a crash on a GPU is a problem, silence is not known."""
    result = machine.probes.get(name, {"failed": "it was not tried"})
    if "failed" not in result:
        return result, None
    if machine.torch["devices"] and ("ended with SIG" in result["failed"] or "Error" in result["failed"]):
        return result, problem(f"It failed: {result['failed']}.", "Look into docs/rocm.md for this message.", "")
    return result, warning(f"Could not be read: {result['failed']}.")


def bf16(machine: Machine) -> Iterator[Finding]:
    """Arithmetic in bf16"""
    result, failed = _tried(machine, "bf16")
    if failed:
        yield failed
    elif not result["finite"] or result["error"] > 0.02:
        yield problem(f"{_where(machine)}, a matrix product in bf16 is wrong (relative error {result['error']:.1%} against fp32).",
                      'Pass `precision="fp32"` to settings_for, and update driver and torch.', AOTRITON)  # fmt: skip
    else:
        yield ok(
            f"{_where(machine)}, a matrix product is as exact as bf16 can be (relative error {result['error']:.2%})."
        )


def attention(machine: Machine) -> Iterator[Finding]:
    """Fused attention (SDPA), forward and backward"""
    result, failed = _tried(machine, "attention")
    if failed:
        yield failed
    elif not result["finite"]:
        yield problem("torch's fused attention gives NaN on this device.", 'Pass `attention="eager"` to settings_for.',
                      AOTRITON)  # fmt: skip
    elif result["error"] > 0.05:
        yield problem(f"torch's fused attention differs from the formula by {result['error']:.0%}.",
                      'Pass `attention="eager"` to settings_for.', AOTRITON)  # fmt: skip
    else:
        yield ok(f"{_where(machine)}, finite and equal to the formula within {max(result['error'], 1e-6):.1g}.")


def varlen(machine: Machine) -> Iterator[Finding]:
    """Attention over packed rows (varlen)"""
    result, failed = _tried(machine, "varlen")
    if result.get("skipped"):
        yield ok(f"Not tried: {result['skipped']}. Nothing needs it: packed rows then go through fused attention.")
    elif failed or not result["finite"] or result["error"] > 0.05:
        reason = result.get("failed") or (
            f"it differs by {result['error']:.0%}" if result["finite"] else "it gives NaN"
        )
        yield warning(f"Cannot be used here: {reason}.", "Leave it: packed rows then go through fused attention, "
                      "a little slower.", VARLEN)  # fmt: skip
    else:
        yield ok(f"Equal to attention row by row within {max(result['error'], 1e-6):.1g}.")


def four_bits(machine: Machine) -> Iterator[Finding]:
    """4 bits (bitsandbytes)"""
    result, failed = _tried(machine, "four_bits")
    if failed:
        yield warning(failed.says, "Leave out the method `qlora`, or see which ROCm and architectures its wheel has.",
                      BITSANDBYTES)  # fmt: skip
        return
    library = result["library"] or "a library of unknown name"
    sentence = f"{_where(machine)}, a matrix stored in NF4 and read back differs by {result['error']:.1%} (bitsandbytes {result['version']}, {library})"
    hip = re.match(r"(\d+)\.(\d+)", machine.torch.get("hip") or "")
    if not 0.02 < result["error"] < 0.2:  # 9 % is what 16 levels leave of normal numbers
        yield problem(f"{sentence}; 9 % would be right.", "Leave out the method `qlora`.", BITSANDBYTES)
    elif machine.torch["devices"] and "cpu" in library:
        yield warning(f"{sentence}: the library for the processor, although there is a GPU.",
                      "Install a bitsandbytes with a library for the ROCm of torch.", BITSANDBYTES)  # fmt: skip
    elif hip and library != f"libbitsandbytes_rocm{hip[1]}{hip[2]}.so":
        yield ok(f"{sentence}: not made for ROCm {hip[0]}, but near enough to work.", source=BITSANDBYTES)
    else:
        yield ok(f"{sentence}.")


def speed(machine: Machine) -> Iterator[Finding]:
    """Speed, against what the maker states"""
    result, failed = _tried(machine, "speed")
    if failed:
        yield failed
        return
    devices, roof = machine.torch["devices"], machine.peak
    times = result["bf16"] / result["fp32"]
    product = f"{_where(machine)}, a matrix product (n = {result['n']}) runs at {result['bf16']:.3g} TFLOP/s in bf16"
    copy = f"a copy at {result['copy']:,.0f} GB/s"
    if roof:
        a, b = result["bf16"] / roof.tflops, result["copy"] / roof.bandwidth
        sentence = f"{product}, {a:.0%} of the {roof.tflops:,.0f} stated, and {copy}, {b:.0%} of {roof.bandwidth:,.0f}."
        if a < 0.2 or b < 0.3:
            yield warning(sentence, "See who else uses the GPU and whether it is hot or limited in power; then try again.",
                          roof.source)  # fmt: skip
        else:
            yield ok(sentence, source=roof.source)
    elif not devices and times < 1:
        yield ok(f"{product}, {times:.1f} times the speed of fp32, and {copy}: the series computes in fp32 here.")
    else:
        yield ok(f"{product}, {times:.1f} times the speed of fp32, and {copy}"
                 + ("; what the maker states for this GPU is not in our list." if devices else "."))  # fmt: skip


def advice(machine: Machine) -> Iterator[Finding]:
    """Settings that AMD advises"""
    devices = machine.devices if machine.torch.get("hip") else []
    instinct = [d for d in devices if re.search(r"\bMI\d{3}", d.name or "")]
    if not instinct:
        return
    balancing = machine.says("proc/sys/kernel/numa_balancing")
    if balancing and balancing != "0":
        yield warning("The kernel moves memory between processor sockets by itself (numa_balancing), which can stall the GPU.",
                      "`sudo sh -c 'echo 0 > /proc/sys/kernel/numa_balancing'`, on the host.", TRAINING)  # fmt: skip
    if machine.environment.get("HIP_FORCE_DEV_KERNARG") != "1":
        yield ok("HIP_FORCE_DEV_KERNARG is not set; AMD's images for Instinct set it to 1 (arguments of kernels lie in the "
                 "GPU's memory), for a little speed.", "`export HIP_FORCE_DEV_KERNARG=1` before you start Jupyter.",
                 HIP_VARIABLES)  # fmt: skip
    elif balancing in (None, "0"):
        yield ok("Set as advised.", source=TRAINING)
