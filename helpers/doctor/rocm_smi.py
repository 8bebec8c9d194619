"""The formats of rocm-smi: its JSON, its lines and its concise table, old and new."""

from __future__ import annotations

import re

from helpers.doctor.cards import Process, address, architecture, celsius, driver, size, watts, words

_SENSORS = ("junction", "edge", "memory")


def from_json(data: dict) -> tuple[dict, list[Process] | None]:
    """From {"card0": {...}, "system": {...}}, the form of its JSON; keys differ in case between versions."""
    found: dict[int, dict] = {}
    system = data["system"] if isinstance(data.get("system"), dict) else {}
    for card, said in data.items():
        if not (match := re.fullmatch(r"card(\d+)", card)) or not isinstance(said, dict):
            continue
        said = {key.lower().strip(" :"): value for key, value in said.items()}
        names = [words(said.get(key)) for key in ("card series", "device name", "card model")]
        found[int(match[1])] = {
            "name": next((n for n in names if n), None),
            "gfx": architecture(said.get("gfx version")),
            "total": size(said.get("vram total memory (b)")),
            "used": size(said.get("vram total used memory (b)")),
            "gtt_total": size(said.get("gtt total memory (b)")),
            "gtt_used": size(said.get("gtt total used memory (b)")),
            "temperature": celsius(*(said.get(f"temperature (sensor {s}) (c)") for s in _SENSORS)),
            "power": watts(*(said.get(f"{kind} graphics package power (w)") for kind in ("current socket", "average"))),
            "compute_partition": words(said.get("compute partition")),
            "memory_partition": words(said.get("memory partition")),
            "driver": driver(system.get("Driver version")),
            "bus": address(said.get("pci bus")),
        }
    processes = []
    for key, value in system.items():
        if key.startswith("PID") and key[3:].isdigit():
            name, _, memory, *_ = [part.strip() for part in f"{value},,,".split(",")]
            processes.append(Process(int(key[3:]), words(name), size(memory)))
    return found, processes or None


def from_lines(text: str) -> tuple[dict, list[Process] | None]:
    """From the lines "GPU[0] : key : value" and the table of processes."""
    data: dict[str, dict] = {}
    processes: list[Process] | None = None
    for line in text.splitlines():
        if match := re.match(r"GPU\[(\d+)\]\s*: (.+?)\s*:\s+(.+?)\s*$", line):
            data.setdefault(f"card{match[1]}", {})[match[2]] = match[3]
        elif match := re.match(r"Driver version:\s*(\S+)", line):
            data["system"] = {"Driver version": match[1]}
        elif re.match(r"PID\s+PROCESS NAME|No KFD PIDs", line):
            processes = []
        elif processes is not None and (
            row := re.match(r"(\d+)\s+(.+?)\s+(?:\d+|UNKNOWN)\s+(\d+|UNKNOWN)(\s|$)", line)
        ):
            processes.append(Process(int(row[1]), words(row[2]), size(row[3])))
    return from_json(data)[0], processes


def from_columns(text: str, header: re.Match) -> dict[int, dict]:
    """The concise table, of rocm-smi or of ``amd-smi monitor``: mostly without the size of the memory."""
    found, index = {}, None
    for line in text[header.end() :].splitlines():
        if row := re.match(r"\s*(\d+)\s+\S", line):
            index = int(row[1])
            heat, power = re.search(r"\s([\d.]+) ?°?[cC]\s", line), re.search(r"\s([\d.]+) ?W\s", line)
            modes = re.search(r"\b(NPS\d), (\w+)", line)
            memory = re.search(r"([\d.]+)/\s*([\d.]+) (MB|GB)\s*$", line)
            found[index] = {
                "temperature": celsius(heat and heat[1]), "power": watts(power and power[1]),
                "compute_partition": modes and modes[2], "memory_partition": modes and modes[1],
                "used": size(memory[1], memory[3]) if memory else None,
                "total": size(memory[2], memory[3]) if memory else None,
            }  # fmt: skip
        elif index is not None and (name := re.match(r"\s+([A-Z][\w .+/-]+?)\s*$", line)):
            found[index]["name"] = words(name[1])  # some versions put the name below its row
        elif line.startswith("PROCESS"):
            break
    return found
