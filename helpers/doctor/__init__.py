"""The doctor: what this machine is, what works on it and what does not, each finding with its remedy and source.

``make doctor`` prints it, ``00_setup_check`` shows it. It works with whatever there is of torch, amd-smi, nvidia-smi
and the kernel's files, and on a machine with none of them. No part of it was run on an AMD GPU; how it reads what
their tools print is tested on outputs that others published.
"""

from __future__ import annotations

from dataclasses import replace

from helpers.doctor import access, hardware, software
from helpers.doctor.finding import Finding, Report, say
from helpers.doctor.machine import Machine, look
from helpers.doctor.tools import within

CHECKS = {
    "Computer": software.computer,
    "GPU": hardware.product,
    "Device files": access.device_files,
    "Visible devices": access.visible_devices,
    "Kernels": hardware.kernels,
    "Versions": hardware.versions,
    "GPU memory": hardware.memory,
    "Shared or divided": hardware.parts,
    "Sensors": hardware.tools,
    "Packages": software.packages,
    "bf16": software.bf16,
    "Attention": software.attention,
    "Packed attention": software.varlen,
    "4 bits": software.four_bits,
    "Triton": software.triton,
    "Speed": software.speed,
    "AMD's advice": software.advice,
    "Disk": software.disk,
}

__all__ = ["CHECKS", "Finding", "Machine", "Report", "examine", "look"]


def examine(machine: Machine, seconds: float = 20) -> Report:
    """All findings. A check that fails or does not end says so and stops no other."""
    report = Report()
    for name, check in CHECKS.items():
        try:
            findings = within(seconds, lambda check=check: list(check(machine)))
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            findings = [say("all.not_read", reason=reason)]
        report += [replace(finding, check=name) for finding in findings]
    return report
