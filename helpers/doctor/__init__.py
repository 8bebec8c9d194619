"""The doctor: what this machine is, what works on it and what does not, each finding with its remedy and source.

``make doctor`` prints it, ``00_setup_check`` shows it. It works with whatever there is of torch, amd-smi and
the kernel's files, and on a machine with none of them. No part of it was run on an AMD GPU; how it reads what
their tools print is tested on outputs that others published.
"""

from dataclasses import replace

from helpers.doctor.checks import CHECKS
from helpers.doctor.finding import Finding, Report, say
from helpers.doctor.machine import Machine, look
from helpers.doctor.probes import ask, within


def examine(machine: Machine, seconds: float = 20) -> Report:
    """All findings. A check that fails or does not end says so and stops no other."""
    report = Report()
    for title, check in CHECKS.items():
        try:
            findings = within(seconds, lambda check=check: list(check(machine)))
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            findings = [say("all.not_read", reason=reason)]
        report += [replace(finding, check=title) for finding in findings]
    return report
