"""Everything that the doctor finds out before it judges: tools, kernel, torch, environment. Never imports torch."""

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from helpers.doctor import cards, probes
from helpers.doctor.cards import Card, Process, matches

KNOWN = tomllib.loads(Path(__file__).with_name("cards.toml").read_text(encoding="utf-8"))
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

    root: Path = Path("/")  # what stands for /
    environment: dict[str, str] = field(default_factory=dict)
    probes: dict[str, dict] = field(default_factory=dict)
    amd: list[Card] = field(default_factory=list)
    nvidia: list[Card] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    trouble: str = ""  # why amd-smi or the kernel's files could not be read

    @property
    def torch(self) -> dict:
        """What torch sees, {"devices": []} if it could not be asked."""
        seen = self.probes.get("torch_sees", {})
        return {"devices": []} | ({} if "failed" in seen else seen)

    @property
    def cards(self) -> list[Card]:
        """What the tools and the kernel know, whether torch can use it or not."""
        return self.amd or self.nvidia

    @property
    def devices(self) -> list[Card]:
        """What torch can use, with what is known of the same device otherwise; without torch, what is known."""
        seen = [{name: device.get(name) for name in vars(Card())} for device in self.torch["devices"]]
        sure = [Card(total=d["total"], gfx=d["gfx"] and d["gfx"].split(":")[0], bus=d["bus"]) for d in seen]
        known = matches(sure, self.cards)
        return [s.filled(k).filled(Card(**d)) for s, k, d in zip(sure, known, seen, strict=True)] or self.cards

    @property
    def peak(self) -> Peak | None:
        """What the maker states for the device that torch uses; None for a CPU and what is not listed."""
        first = self.devices[0] if self.torch["devices"] else Card()
        if first.compute_partition not in (None, "SPX"):
            return None  # nobody states the share of a part of a card
        listed = KNOWN["peaks"].items()
        return next((Peak(*states) for name, states in listed if re.search(name, first.name or "", re.I)), None)

    def says(self, path: str) -> str | None:
        """A small file of the system."""
        return cards.says(self.root, path)

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
    def gfx(self) -> str:
        """The architecture of the first device."""
        return (self.devices[0].gfx if self.devices else None) or "this card"


def read_amd(root: Path, seconds: float = 15) -> dict:
    """The fields of a machine about AMD GPUs: the kernel first, since it counts as HIP does, amd-smi for the gaps."""
    shown, trouble = cards.ask_amd(seconds)
    try:
        found, processes = probes.within(seconds, cards.read_kernel, root)
    except Exception as error:  # a driver that hangs
        found, processes, trouble = [], [], f"/sys could not be read ({type(error).__name__})"
    amd = [card.filled(other) for card, other in zip(found, matches(found, shown), strict=True)] or shown
    return {"amd": amd, "processes": processes, "trouble": trouble}


def look(root: Path = Path("/")) -> Machine:
    """Ask the kernel and the tools, then try things out, one after the other, so that nothing disturbs the measurements."""
    environment = {name: os.environ[name] for name in (*VISIBLE, *OTHERS) if name in os.environ}
    return Machine(root, environment, probes.ask(), nvidia=cards.read_nvidia(root), **read_amd(root))
