"""Everything that the doctor finds out before it judges: tools, kernel, torch, environment. Never imports torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from helpers.doctor import kernel, probes, tools
from helpers.doctor.cards import KNOWN, Card, Reading, architecture, merge

# Variables that decide what ROCm and torch do; the only ones that are read and shown.
VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
OTHERS = ("HSA_OVERRIDE_GFX_VERSION", "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL")


class Peak(NamedTuple):
    """``tflops`` of dense bf16 matrix products and ``bandwidth`` of the memory in GB/s, from the maker's page."""

    tflops: float
    bandwidth: float
    source: str


@dataclass
class Machine:
    """What was found; nothing in it is a judgement. Cards come in the order of the source, devices in torch's."""

    root: Path = Path("/")
    environment: dict[str, str] = field(default_factory=dict)
    amd: Reading = field(default_factory=Reading)
    nvidia: Reading = field(default_factory=Reading)
    probes: dict[str, dict] = field(default_factory=dict)

    @property
    def torch(self) -> dict:
        """What torch sees, {"devices": []} if it could not be asked."""
        seen = self.probes.get("torch_sees", {})
        return {"devices": []} | ({} if "failed" in seen else seen)

    @property
    def cards(self) -> list[Card]:
        """What the tools and the kernel know, whether torch can use it or not."""
        return self.amd.cards or self.nvidia.cards

    @property
    def devices(self) -> list[Card]:
        """What torch can use, with what the tools know of the same device; without torch, what the tools know."""
        seen = self.torch["devices"]
        by_bus = {card.bus: card for card in self.cards if card.bus}
        in_order = self.cards if len(seen) == len(self.cards) else [Card(i) for i in range(len(seen))]
        found = []
        for index, device in enumerate(seen):
            known = by_bus.get(device["bus"], in_order[index])
            facts = {name: getattr(known, name) or device.get(name) for name in ("name", "temperature", "power")}
            facts |= {"total": device["total"], "gfx": architecture(device["gfx"]) or known.gfx}
            found.append(replace(known, index=index, **facts))
        return found or self.cards

    @property
    def peak(self) -> Peak | None:
        """What the maker states for the device that torch uses; None for a CPU and what is not listed."""
        first = self.devices[0] if self.torch["devices"] else Card(0)
        if first.compute_partition not in (None, "SPX"):
            return None  # nobody states the share of a part of a card
        listed = KNOWN["peaks"].items()
        return next((Peak(*states) for name, states in listed if re.search(name, first.name or "", re.I)), None)

    def says(self, path: str) -> str | None:
        """A small file of the system."""
        return kernel.text(self.root / path)

    @property
    def rocm(self) -> str | None:
        """The version of ROCm installed on this machine, apart from the one that torch brings along."""
        return (self.says("opt/rocm/.info/version") or "").split("-")[0] or None

    @property
    def place(self) -> str:
        """Where a remedy has to be applied: "container" or "host"."""
        marks = (self.root / ".dockerenv", self.root / "run/.containerenv")
        return "container" if any(mark.exists() for mark in marks) else "host"

    @property
    def wsl(self) -> bool:
        """Whether this is Linux under Windows, with a GPU passed in."""
        release = self.says("proc/sys/kernel/osrelease") or ""
        return "microsoft" in release.lower() and (self.root / "dev/dxg").exists()

    @property
    def where(self) -> str:
        """Where the trials ran, as a sentence begins."""
        return "On the GPU" if self.torch["devices"] else "On the processor"

    @property
    def gfx(self) -> str:
        """The architecture of the first device."""
        return (self.devices[0].gfx if self.devices else None) or "this card"


def read_amd(root: Path = Path("/"), seconds: float = 15) -> Reading:
    """amd-smi, then the kernel for what is missing; what fails is noted and left out."""
    reading = tools.ask_amd(seconds)
    try:
        return merge(reading, tools.within(seconds, kernel.read, root))
    except Exception as error:
        reading.troubles.append(f"/sys could not be read ({error})")
        return reading


def look(root: Path = Path("/"), environment: Mapping[str, str] | None = None) -> Machine:
    """Ask tools, kernel and torch at the same time; ``root`` stands for /."""
    environment = dict(os.environ if environment is None else environment)
    groups = (probes.NAMES[:-1], probes.NAMES[-1:])  # the last imports everything: beside the others, on another core
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(probes.ask, group, 60, environment) for group in groups]
        amd, nvidia = pool.submit(read_amd, root), pool.submit(kernel.read_nvidia, root)
        answers = {name: result for job in jobs for name, result in job.result().items()}
        shown = {name: environment[name] for name in (*VISIBLE, *OTHERS) if name in environment}
        return Machine(root, shown, amd.result(), nvidia.result(), answers)
