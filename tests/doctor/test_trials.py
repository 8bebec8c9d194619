"""The trials that run PyTorch, the processes they run in, and what the doctor says about their results."""

import json
import subprocess
import sys
import time

from helpers.doctor import Finding, Report, examine, probes, trials
from helpers.doctor.machine import Machine
from helpers.settings import ROOT
from tests.doctor.faked import CARD, ON_CPU, hip, levels

import pytest


@pytest.mark.parametrize(
    ("probe", "result", "check", "level"),
    [
        ("attention", {"failed": "the process ended with SIGSEGV"}, "Attention", "problem"),
        ("attention", {"failed": "no answer within 60 s"}, "Attention", "warning"),
        ("four_bits", {"failed": "OSError: libamdhip64"}, "4 bits", "warning"),
        ("speed", {"n": 8192, "fp32": 90.0, "bf16": 100.0, "copy": 3900.0}, "Speed", "warning"),
        ("speed", {"failed": "the process ended with SIGSEGV"}, "Speed", "problem"),
        ("packages", {"failed": "the process ended with code 1"}, "Packages", "warning"),
        ("torch_sees", {"failed": "ModuleNotFoundError: No module named 'torch'"}, "GPU", "problem"),
    ],
)
def test_what_failed(judged, probe, result, check, level):
    assert levels(judged(hip({}) | {probe: result}, [CARD]), check) == [level]


def test_wrong_numbers_and_a_package_that_cannot_be_imported_are_problems(judged, monkeypatch):
    monkeypatch.setattr(trials, "sdpa", lambda q, k, v, **_: (q + k.mean() + v.mean()) * float("nan"))
    monkeypatch.setattr(trials, "PACKAGES", {"torch": "Tensor", "no_such_package": "x"})
    results = {name: getattr(trials, name)() for name in ("attention", "packages")}
    assert "NaN" in results["attention"]["error"] and "torch" not in results["packages"]["names"].split()
    monkeypatch.setattr(trials, "_error", lambda rough, exact: 0.03)
    findings = judged(hip({}) | results | {"bf16": trials.bf16()}, [CARD])
    assert [levels(findings, name) for name in ("Attention", "Packages", "bf16")] == [["problem"]] * 3


def test_what_the_trials_return_fits_their_texts(judged):
    results = {
        name: getattr(trials, name)() for name in ("torch_sees", "bf16", "attention", "four_bits", "triton", "packages")
    }
    findings = judged(json.loads(json.dumps(results)) | {"speed": ON_CPU["speed"]}, files={})
    for check in ("bf16", "Attention", "4 bits", "Packages", "Speed"):
        assert levels(findings, check) == ["ok"], findings[check]


def test_a_check_that_fails_or_hangs_stops_no_other(monkeypatch, tmp_path):
    def broken(machine):
        raise RuntimeError("split into\nlines")

    def hanging(machine):
        time.sleep(30)

    def sound(machine):
        return [Finding("ok", "x")]

    monkeypatch.setattr("helpers.doctor.CHECKS", {"a": broken, "b": hanging, "c": sound})
    report = examine(Machine(tmp_path), seconds=0.2)
    assert [(f.check, f.level) for f in report] == [("a", "warning"), ("b", "warning"), ("c", "ok")]
    assert "RuntimeError: split into lines" in report[0].says and "no answer" in report[1].says


def test_probes_that_die_or_hang_cost_only_themselves(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\nfor a in $*; do case $a in good) echo '{\"x\": 1}';; dies) echo 'LLVM ERROR: no' >&2; kill -11 $$;; hangs) sleep 60;; esac; done\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    found = probes.ask(["good", "dies", "hangs", "good2"], seconds=0.4)
    assert found["good"] == {"x": 1} and found["dies"] == {"failed": "the process ended with SIGSEGV: LLVM ERROR: no"}
    assert found["hangs"] == {"failed": "the process gave no answer within 0.4 s"}
    assert found["good2"] == {"failed": "the process ended with code 0"}


def test_a_trial_that_the_others_left_no_time_gets_a_process_of_its_own(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nfor a in $*; do case $a in slow*) sleep 0.6; echo '{\"x\": 1}';; esac; done\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    assert probes.ask(["slow1", "slow2"], seconds=1) == {"slow1": {"x": 1}, "slow2": {"x": 1}}


def test_the_report_names_each_level_in_words_and_a_source_only_beside_a_remedy():
    report = Report([Finding("problem", "x", "do `y`", "https://a.b/?c&d"), Finding("ok", "fine", "", "https://x")])
    text = report.text(80)
    assert "✗ problem" in text and "Do: do `y`" in text and "See https://a.b/?c&d" in text
    assert text.endswith("1 problem, 1 ok") and report.worst == "problem" and "https://x" not in text


@pytest.mark.parametrize(("torch", "code"), [({}, 0), ({"failed": "no torch"}, 1)])
def test_the_exit_code_is_non_zero_only_on_a_problem(tmp_path, torch, code):
    script = (
        "import sys\nfrom helpers.doctor import probes, machine\n"
        f"probes.ask = lambda: {ON_CPU | ({'torch_sees': torch} if torch else {})!r}\n"
        "import runpy; runpy.run_module('helpers.doctor', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == code, done.stderr
    assert "GPU" in done.stdout and "torch" not in done.stderr


def test_the_doctor_never_imports_torch_itself():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, helpers.doctor; sys.exit('torch' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
    )
    assert done.returncode == 0
