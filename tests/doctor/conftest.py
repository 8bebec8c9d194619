"""A tool on PATH that prints what a test wants, and findings for a machine made of facts."""

from helpers.doctor import examine
from helpers.doctor.machine import Machine
from tests.doctor.faked import FILES, ON_CPU, plant

import pytest


@pytest.fixture
def tools_on_path(tmp_path, monkeypatch):
    """Puts amd-smi on PATH: for words among its arguments the output, or a line of shell after "!"."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(answers: dict[str, str]) -> None:
        lines = ["#!/bin/sh", 'case " $* " in']
        for number, (words, answer) in enumerate(answers.items()):
            file = folder / f"{number}.out"
            file.write_text(answer, encoding="utf-8")
            command = answer[1:] if answer.startswith("!") else f"cat '{file}'"
            lines.append(f"*{words.replace(' ', '*')}*) {command};;" if words else f"*) {command};;")
        (folder / "amd-smi").write_text("\n".join([*lines, "esac", ""]))
        (folder / "amd-smi").chmod(0o755)

    return put


@pytest.fixture
def judged(tmp_path):
    """Findings by check for a machine with these probes, cards, files and variables."""

    def judge(probes=ON_CPU, cards=(), files=None, processes=(), trouble="", **environment) -> dict[str, list]:
        root = plant(tmp_path / "root", FILES if files is None else files)
        machine = Machine(root, environment, probes, list(cards), processes=list(processes), trouble=trouble)
        findings: dict[str, list] = {}
        for one in examine(machine):
            findings.setdefault(one.check, []).append(one)
        return findings

    return judge
