"""Asking amd-smi, as JSON or as text; its outputs are in tests/fixtures. For an NVIDIA GPU torch answers.

rocm-smi is not asked: it reads the files that :mod:`helpers.doctor.kernel` reads.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable

from helpers.doctor.cards import Reading, address, architecture, between, card, driver, number, size, words


def within(seconds: float, function: Callable, *arguments):
    """The result of a function, given up after some seconds; its thread is left behind, since a driver may hold it.

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


def run(command: list[str], seconds: float = 15) -> tuple[str, str]:
    """What a command printed, and why there is nothing; one of the two is empty."""
    options = {"capture_output": True, "timeout": seconds, "stdin": subprocess.DEVNULL, "errors": "replace"}
    try:
        done = within(seconds + 0.5, lambda: subprocess.run(command, **options, start_new_session=True))
    except (TimeoutError, subprocess.TimeoutExpired):
        return "", f"gave no answer within {seconds:g} s"
    except OSError as error:
        return "", f"could not be started ({error.strerror})"
    if done.stdout.strip():
        return done.stdout, ""
    last = done.stderr.strip().splitlines()[-1:] or ["no output"]
    return "", own_sentence(done.stderr) or f"ended with code {done.returncode}: {last[0][:160]}"


def own_sentence(text: str) -> str | None:
    """The sentence with which a tool says what it lacks, without "ERROR:root:"; None if there is none.

    Of several errors the first names the cause; the others name consequences, or devices that are absent anyway.
    """
    if isinstance(document := _json(text), dict):
        text = f"ERROR: {document.get('error') or document.get('error_message')}"
    lack = r"\b(?:no|not|unable|cannot|couldn't|failed|missing|mismatch|denied)\b"
    found: dict[bool, str] = {}
    for line in text.splitlines():
        pattern = rf"\s*((?:error|warning|critical)\b[\s:-]*(?:root:)?)?\s*((?=[a-z])[^|{{]*{lack}.*)"
        if match := re.match(pattern, line, re.IGNORECASE):
            is_error = (match[1] or "").lower().startswith("error")
            found.setdefault(is_error, match[2].strip().rstrip(".")[:200])
    sentence = found.get(True, found.get(False))
    return sentence and f"says: {sentence}"


def ask_amd(seconds: float = 15) -> Reading:
    """What amd-smi says; no cards if it is not installed or gives no answer, with the reason in troubles."""
    path = shutil.which("amd-smi") or shutil.which("amd-smi", path="/opt/rocm/bin")
    troubles: list[str] = []
    for form in (["--json"], []) if path else ():
        answers = [run([path, command, *form], seconds) for command in ("static", "metric")]
        troubles += [f"amd-smi {reason}" for _, reason in answers if reason]
        printed = [text for text, _ in answers if text]
        if (reading := parse(*printed)).cards or any("no answer" in trouble for trouble in troubles):
            return Reading(reading.cards, troubles=troubles)
        if printed:
            troubles.append(f"amd-smi {own_sentence(printed[0]) or 'printed nothing that could be understood'}")
    return Reading(troubles=troubles)


def parse(*outputs: str) -> Reading:
    """The cards in what ``amd-smi static`` and ``amd-smi metric`` printed; several outputs add up."""
    facts: dict[int, dict] = {}
    for text in outputs:
        data = _json(text)
        gpus = _sections(text) if data is None else data.get("gpu_data") if isinstance(data, dict) else data
        for gpu in gpus if isinstance(gpus, list) else []:
            if isinstance(gpu, dict) and (index := number(gpu.get("gpu"))) is not None:
                new = {name: value for name, value in _facts(gpu).items() if value is not None}
                facts[int(index)] = facts.get(int(index), {}) | new
    return Reading([card(index, facts[index]) for index in sorted(facts)])


def _facts(gpu: dict) -> dict:
    """The facts of one GPU by the fields of a card."""

    def at(section: str, name: str):
        found = gpu.get(section)
        return found.get(name) if isinstance(found, dict) else None

    return {
        "name": words(at("asic", "market_name"), at("board", "product_name")),
        "gfx": architecture(at("asic", "target_graphics_version")),
        "total": size(at("mem_usage", "total_vram"), "MB") or size(at("vram", "size"), "MB"),
        "used": size(at("mem_usage", "used_vram"), "MB"),
        "gtt_total": size(at("mem_usage", "total_gtt"), "MB"),
        "temperature": between(0.1, 150, *(at("temperature", sensor) for sensor in ("hotspot", "edge", "mem"))),
        "power": between(0, 5000, *(at("power", f"{kind}socket_power") for kind in ("", "current_", "average_"))),
        "compute_partition": words(*(at("partition", f"{kind}_partition") for kind in ("accelerator", "compute"))),
        "memory_partition": words(at("partition", "memory_partition")),
        "driver": driver(at("driver", "version"), at("driver", "driver_version")),
        "bus": address(at("bus", "bdf")),
    }


def _json(text: str):
    """The first JSON document in the text, after any warnings; None if there is none."""
    for start in re.finditer(r"^\s*[\[{]", text, re.MULTILINE):
        try:
            return json.JSONDecoder().raw_decode(text[start.start() :].lstrip())[0]
        except ValueError:
            continue
    return None


def _sections(text: str) -> list[dict]:
    """The indented text of amd-smi as the JSON would be, with keys in lower case; what is nested deeper is left out."""
    gpus: list[dict] = []
    gpu: dict = {}
    section: dict = {}
    for indent, key, value in re.findall(r"^( *)([A-Z][\w /%.-]*): ?(.*)$", text, re.MULTILINE):
        if not indent:
            gpu = {"gpu": value} if key == "GPU" and value.strip().isdigit() else {}
            gpus.append(gpu)
        elif len(indent) <= 4:
            section = gpu[key.lower()] = {}
        elif len(indent) <= 8:
            section[key.lower()] = value.strip()
    return gpus
