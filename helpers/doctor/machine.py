"""Everything that the doctor finds out before it judges: tools, kernel, torch, environment. Never imports torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers.doctor import peaks, probes, smi, sysfs
from helpers.doctor.cards import Card, Reading, architecture, merge
from helpers.doctor.peaks import Peak

# Variables that decide what ROCm and torch do; the only ones that are read and shown.
VISIBLE = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
OTHERS = ("HSA_OVERRIDE_GFX_VERSION", "HIP_FORCE_DEV_KERNARG", "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL")


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
        return self.amd.cards or self.nvidia.cards

    @property
    def devices(self) -> list[Card]:
        """What torch can use, with what the tools know of the same device; without torch, what the tools know."""
        seen = self.torch["devices"]
        by_bus = {card.bus: card for card in self.cards if card.bus}
        found = []
        for index, device in enumerate(seen):
            known = by_bus.get(device["bus"])
            if known is None and len(seen) == len(self.cards):
                known = self.cards[index]
            known = known or Card(index)
            found.append(
                replace(
                    known,
                    index=index,
                    name=known.name or device["name"],
                    total=device["total"],
                    gfx=architecture(device["gfx"]) or known.gfx,
                )  # fmt: skip
            )
        return found or self.cards

    @property
    def peak(self) -> Peak | None:
        """What the maker states for the device that torch uses; None for a CPU and what is not listed."""
        first = self.devices[0] if self.torch["devices"] else Card(0)
        return peaks.peak(first.name, first.compute_partition)

    def says(self, path: str) -> str | None:
        """A small file of the system."""
        return sysfs.text(self.root / path)

    @property
    def rocm(self) -> str | None:
        """The version of ROCm installed on this machine, apart from the one that torch brings along."""
        return (self.says("opt/rocm/.info/version") or "").split("-")[0] or None

    @property
    def container(self) -> bool:
        return any((self.root / name).exists() for name in (".dockerenv", "run/.containerenv"))

    @property
    def wsl(self) -> bool:
        return "microsoft" in (self.says("proc/sys/kernel/osrelease") or "").lower()


def within(seconds: float, function: Callable, *arguments):
    """The result of a function, given up after some seconds; its thread is left behind.

    Raises:
        TimeoutError: if it took too long; and whatever the function raises.
    """
    result: dict = {}

    def call() -> None:
        try:
            result["value"] = function(*arguments)
        except Exception as error:
            result["error"] = error

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        raise TimeoutError(f"no answer within {seconds:g} s")
    if "error" in result:
        raise result["error"]
    return result["value"]


def read_amd(root: Path = Path("/"), seconds: float = 15) -> Reading:
    """amd-smi, then rocm-smi for what is missing, then the kernel; what fails is noted and left out."""
    reading = Reading()
    for tool in smi.AMD_TOOLS:
        if not reading.cards or any(None in (c.name, c.gfx, c.total, c.used) for c in reading.cards):
            reading = merge(reading, smi.ask(tool, seconds))
    try:
        return merge(reading, within(seconds, sysfs.read, root))
    except Exception as error:
        reading.troubles.append(f"/sys could not be read ({error})")
        return reading


def look(
    root: Path = Path("/"), environment: Mapping[str, str] | None = None, names: tuple[str, ...] = tuple(probes.PROBES),
    seconds: float = 60,
) -> Machine:  # fmt: skip
    """Ask tools, kernel and torch at the same time.

    Args:
        root: the folder that stands for /.
        names: the probes to run, by name.
        seconds: for one probe.
    """
    environment = os.environ if environment is None else environment
    heavy = [name for name in names if name == "packages"]  # imports everything: beside the others, on another core
    light = [name for name in names if name not in heavy]
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(probes.ask, group, seconds, dict(environment)) for group in (light, heavy) if group]
        amd, nvidia = pool.submit(read_amd, root), pool.submit(smi.nvidia)
        answers = {name: result for job in jobs for name, result in job.result().items()}
        kept = {name: environment[name] for name in (*VISIBLE, *OTHERS) if name in environment}
        return Machine(root, kept, amd.result(), nvidia.result(), answers)
