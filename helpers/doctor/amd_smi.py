"""The formats of amd-smi: the JSON and the text of ``static``, ``metric`` and ``process``, and its summary table.

Each function returns the facts by GPU index, and the processes or None where they are not told.
"""

from __future__ import annotations

import re

from helpers.doctor.cards import Process, address, architecture, celsius, driver, number, size, watts, words


def from_tree(gpus) -> tuple[dict, list[Process] | None]:
    """From ``static``, ``metric`` and ``process``; older versions give a list, newer ones {"gpu_data": list}."""
    found, processes = {}, None
    for gpu in gpus if isinstance(gpus, list) else []:
        if not isinstance(gpu, dict) or number(gpu.get("gpu")) is None:
            continue
        index = int(number(gpu["gpu"]))

        def at(*path, tree=gpu):
            for name in path:
                tree = tree.get(name) if isinstance(tree, dict) else None
            return tree

        found[index] = {
            "name": words(at("asic", "market_name")) or words(at("board", "product_name")),
            "gfx": architecture(at("asic", "target_graphics_version")),
            "total": size(at("mem_usage", "total_vram"), "MB") or size(at("vram", "size"), "MB"),
            "used": size(at("mem_usage", "used_vram"), "MB"),
            "gtt_total": size(at("mem_usage", "total_gtt"), "MB"),
            "gtt_used": size(at("mem_usage", "used_gtt"), "MB"),
            "temperature": celsius(*(at("temperature", s) for s in ("hotspot", "edge", "mem"))),
            "power": watts(*(at("power", f"{kind}socket_power") for kind in ("", "current_", "average_"))),
            "compute_partition": words(at("partition", "compute_partition")),
            "memory_partition": words(at("partition", "memory_partition")),
            "driver": driver(at("driver", "version") or at("driver", "driver_version")),
            "bus": address(at("bus", "bdf")),
        }
        listed = gpu.get("process_list", gpu.get("process_info"))
        if listed is not None:
            processes = (processes or []) + _processes(index, listed)
    return found, processes


def _processes(index: int, listed) -> list[Process]:
    """``listed`` holds the processes of one GPU, or a sentence that there are none."""
    running = []
    for entry in listed if isinstance(listed, list) else [listed]:
        entry = entry.get("process_info", entry) if isinstance(entry, dict) else None
        if isinstance(entry, dict) and (pid := number(entry.get("pid"))) is not None:
            memory = entry.get("memory_usage")
            held = size(memory.get("vram_mem"), "B") if isinstance(memory, dict) else None
            held = held or size(entry.get("mem_usage", entry.get("mem")), "B")
            running.append(Process(int(pid), words(entry.get("name")), held, index))
    return running


def tree(text: str) -> list[dict]:
    """The indented text of amd-smi as the tree that its JSON is: keys in lower case, repeated keys as a list."""
    root: dict = {}
    stack = [(-1, root)]
    gpus: list[dict] = []
    for line in text.splitlines():
        match = re.match(r"(\s*)([A-Z][\w /%.-]*): ?(.*)$", line)
        if not match:
            continue
        depth, key, value = len(match[1]), match[2].lower(), match[3].strip()
        if depth == 0:
            stack = [(-1, root)]
            if key == "gpu" and value.isdigit():
                gpus.append({"gpu": int(value)})
                stack = [(-1, root), (0, gpus[-1])]
            continue
        while stack[-1][0] >= depth:
            stack.pop()
        parent = stack[-1][1]
        child = value or {}
        if key in parent and isinstance(child, dict):
            parent[key] = (parent[key] if isinstance(parent[key], list) else [parent[key]]) + [child]
        else:
            parent[key] = child
        if isinstance(child, dict):
            stack.append((depth, child))
    return gpus


def from_table(text: str) -> tuple[dict, list[Process] | None]:
    """The summary that amd-smi 26 and later print without arguments: two lines a card, then the processes."""
    found, processes, name, version, bus, right = {}, None, None, None, None, ""
    for line in text.splitlines():
        if match := re.search(r"amdgpu version: (\d\S*)", line):  # otherwise "Linuxver", a banner cut off
            version = match[1]
        if match := re.match(r"\|\s+(\d+)\s+(\d+)\s+(\S.*?)\s+[\d.]+ \w+\s+([\d.]+ \w+|N/A)\s", line):
            running = Process(int(match[2]), words(match[3]), size(match[4]), int(match[1]))
            processes = [*(processes or []), running]
        elif "No running processes" in line:
            processes = []
        elif row := re.match(r"\|(.*)\|(.*)\|\s*$", line):
            left = row[1].split()
            if left and address(left[0]):
                bus, name, right = left[0], words(" ".join(left[1:])), row[2]
            elif len(left) == 4 and left[0].isdigit():
                heat, power = re.search(r"([\d.]+) °C", right), re.search(r"([\d.]+)/[\d.]+ W", right)
                memory = re.search(r"(\d+)/(\d+) MB", row[2])
                modes = re.fullmatch(r"(\w+)/(NPS\d)", left[-1])
                found[int(left[0])] = {
                    "name": name, "driver": version, "bus": address(bus),
                    "used": size(memory[1], "MB") if memory else None,
                    "total": size(memory[2], "MB") if memory else None,
                    "temperature": celsius(heat and heat[1]), "power": watts(power and power[1]),
                    "compute_partition": modes and modes[1], "memory_partition": modes and modes[2],
                }  # fmt: skip
    return found, processes
