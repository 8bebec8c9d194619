"""Asking the vendors' tools: amd-smi, rocm-smi and nvidia-smi, as JSON or as text, of any generation.

The outputs that this was written against are in tests/fixtures, each with its source.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace

from helpers.doctor import amd_smi, rocm_smi
from helpers.doctor.cards import Process, Reading, address, card, celsius, size, watts, words


class ToolError(RuntimeError):
    """A tool that gave no answer; the message says which and why."""


def run(command: list[str], seconds: float = 15) -> str:
    """The output of a command.

    The output goes to a file and a command that does not end is abandoned after the kill, because a process that the
    driver holds in the kernel (state D) can neither be killed nor waited for.

    Raises:
        ToolError: if it cannot be started, does not end in time, or fails without output.
    """
    tool = os.path.basename(command[0])
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            raise ToolError(f"{tool} could not be started ({error.strerror})") from None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise ToolError(f"{tool} gave no answer within {seconds:g} s") from None
        out.seek(0), err.seek(0)
        text, complaint = (f.read(4_000_000).decode(errors="replace") for f in (out, err))
    if not text.strip():
        last = complaint.strip().splitlines()[-1:] or ["no output"]
        raise ToolError(f"{tool} ended with code {code}: {last[0][:160]}")
    return text


def find(tool: str) -> str | None:
    """The path of a tool, on PATH or where ROCm installs it."""
    return shutil.which(tool) or shutil.which(tool, path="/opt/rocm/bin")


def parse(*outputs: str) -> Reading:
    """Cards and processes out of what amd-smi or rocm-smi printed, whatever the format; several outputs add up."""
    facts: dict[int, dict] = {}
    processes: list[Process] | None = None
    for text in outputs:
        data = _json(text)
        if data is None:
            found, running = _text(text)
        elif isinstance(data, dict) and "gpu_data" not in data:
            found, running = rocm_smi.from_json(data)
        else:
            found, running = amd_smi.from_tree(data["gpu_data"] if isinstance(data, dict) else data)
        for index, new in found.items():
            facts.setdefault(index, {}).update({k: v for k, v in new.items() if v is not None})
        processes = processes if running is None else (processes or []) + running
    return Reading([card(index, facts[index]) for index in sorted(facts)], processes)


def _json(text: str):
    """The first JSON document in the text, behind whatever warnings; None if there is none."""
    for start in re.finditer(r"^\s*[\[{]", text, re.MULTILINE):
        try:
            return json.JSONDecoder().raw_decode(text[start.start() :].lstrip())[0]
        except ValueError:
            continue
    return None


def _text(text: str) -> tuple[dict, list[Process] | None]:
    if re.search(r"^\| BDF", text, re.MULTILINE):
        return amd_smi.from_table(text)
    if re.search(r"^GPU: \d+", text, re.MULTILINE):
        return amd_smi.from_tree(amd_smi.tree(text))
    header = re.search(r"^\s*(GPU|Device) .*VRAM.*$", text, re.MULTILINE)
    found = rocm_smi.from_columns(text, header) if header else {}
    cards, running = rocm_smi.from_lines(text)
    for index, new in cards.items():
        found.setdefault(index, {}).update({k: v for k, v in new.items() if v is not None})
    return found, running


_METRICS = ["--showproductname", "--showmeminfo", "vram", "gtt", "--showtemp", "--showpower", "--showbus"]
_METRICS += ["--showdriverversion"]
# for each tool the ways to ask, the best first
AMD_TOOLS = {
    "amd-smi": [
        [["static", "--json"], ["metric", "--json"], ["process", "--json"]],
        [["static"], ["metric"], ["process"]],
        [[]],
    ],
    "rocm-smi": [[[*_METRICS, "--showpids", "--json"]], [_METRICS, ["--showpids"]], [[]]],
}


def ask(tool: str, seconds: float = 15) -> Reading:
    """What one of AMD's tools says; no cards if it is not installed or says nothing, with the reason in troubles."""
    path, troubles = find(tool), []
    if path is None:
        return Reading()
    for way in AMD_TOOLS[tool]:
        outputs = []
        for arguments in way:
            try:
                outputs.append(run([path, *arguments], seconds))
            except ToolError as error:
                troubles.append(str(error))
                if "no answer" in str(error):
                    return Reading(troubles=troubles)
        if (reading := parse(*outputs)).cards:
            return replace(reading, troubles=troubles)
    return Reading(troubles=troubles or [f"{tool} said nothing that could be understood"])


def nvidia(seconds: float = 15) -> Reading:
    """What nvidia-smi says."""
    if (path := find("nvidia-smi")) is None:
        return Reading()
    wanted = "index,name,memory.total,memory.used,temperature.gpu,power.draw,driver_version,pci.bus_id"
    try:
        text = run([path, f"--query-gpu={wanted}", "--format=csv,noheader"], seconds)
    except ToolError as error:
        return Reading(troubles=[str(error)])
    cards = []
    for line in text.splitlines():
        parts = [part.strip().replace("MiB", "MB") for part in line.split(",")]
        if len(parts) == 8 and parts[0].isdigit():
            facts = {
                "name": words(parts[1]), "total": size(parts[2]), "used": size(parts[3]),
                "temperature": celsius(parts[4]), "power": watts(parts[5]), "driver": words(parts[6]),
                "bus": address(parts[7][-12:]),  # its domain has eight digits, torch's four
            }  # fmt: skip
            cards.append(card(int(parts[0]), facts))
    return Reading(cards, troubles=[] if cards else ["nvidia-smi said nothing that could be understood"])
