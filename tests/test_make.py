"""Values given to `make` reach commands as they are, or are refused; none is run by a shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.engine.locks import locked

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
STUB = '#!/bin/sh\nprintf "%s\\n" "$@" MODELS_DIR="$MODELS_DIR" >> "$CALLS"\n'
# targets that use a variable; what is given has to appear in their commands
USES = {
    "PROFILE": ["model", "run-all", "catch-up", "report", "lab", "fetch", "rehearse", "site", "slides"],
    "NOTEBOOKS": ["run-all", "rehearse"],
    "PARAMS": ["run-all"],
    "RUNS_DIR": ["run-all", "catch-up", "report", "site", "slides"],
    "TO": ["fetch"],
    "PYTHON": ["env-check", "canary"],
    "TORCH": ["env-check", "canary", "image-check"],
    "CATCH_UP_ARGS": ["catch-up"],
    "LAB_ARGS": ["lab"],
    "TEST_ARGS": ["test", "campaign", "browser"],
    "IMAGE_ARGS": ["image-check"],
}
PLANTED = ["a b", 'it\'s a "quoted" word', "x;touch planted & `touch planted` > planted *"]


@pytest.fixture
def make(tmp_path):
    """Runs make in a folder with a space in its name, with stand-ins for all programs of the environment."""
    folder, calls = tmp_path / "a copy", tmp_path / "calls"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "requirements-tools.txt"):
        shutil.copy(ROOT / name, folder)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "jupyter", "ruff"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    for stamp in (".ready", ".tools"):
        (folder / ".venv" / stamp).touch()

    def run(*arguments: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        calls.write_text("")
        environment = {k: v for k, v in os.environ.items() if k not in USES and k != "MODELS_DIR"} | {
            "CALLS": str(calls)
        }
        done = subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)
        assert not list(tmp_path.rglob("planted")), f"{arguments}: a shell ran the value"
        return done, calls.read_text().splitlines()

    run.folder = folder
    return run


def test_every_variable_of_the_makefile_is_in_the_lists_of_this_test_or_set_up_only():
    given = re.search(r"^NEEDED := (.*)\nGIVEN := \$\(NEEDED\) (.*)$", MAKEFILE, re.MULTILINE)
    listed = set(f"{given[1]} {given[2]}".split())
    assert listed >= set(USES)
    assert listed - set(USES) == {"VENV", "ROCM_INDEX", "FRESH", "YES", "KIT", "WHEELS", "UV", "UPGRADE", "HUB_ARGS"}


@pytest.mark.parametrize(("variable", "target"), [(v, t) for v, targets in USES.items() for t in targets])
def test_a_planted_value_reaches_the_command_as_it_is(make, variable, target):
    (make.folder / "kit").mkdir()
    more = ["KIT=kit"] if target == "rehearse" else []
    words = variable.endswith("_ARGS")
    for value in PLANTED:
        given = (
            "'{}'".format(value.replace("'", "'\\''")) if words else value
        )  # such lists are split like a shell splits
        done, calls = make(target, f"{variable}={given}", *more)
        assert done.returncode == 0, done.stderr
        assert any(line in (value, f"--{variable.lower().replace('_', '-')}={value}") for line in calls), (value, calls)


@pytest.mark.parametrize("variable", [*USES, "VENV", "KIT", "WHEELS", "ROCM_INDEX", "HUB_ARGS"])
def test_what_make_itself_would_run_is_refused(make, variable):
    for value in ("$(shell touch planted)", "$$(touch planted)", "a\nb", "${HOME}"):
        done, calls = make("run-all", f"{variable}={value}")
        assert done.returncode == 2 and not calls
        assert f"{variable} contains a dollar sign or a line break" in done.stderr


@pytest.mark.parametrize("variable", ["PROFILE", "RUNS_DIR", "TO", "TORCH", "PYTHON", "VENV"])
def test_an_empty_value_is_refused(make, variable):
    for value in ("", "   "):
        done, calls = make("run-all", f"{variable}={value}")
        assert done.returncode == 2 and not calls and f"{variable} is empty" in done.stderr


def test_a_folder_for_the_environment_that_make_cannot_name_is_refused(make):
    for value in ("my env", "it's", "env;touch planted", "`touch planted`", "~/env"):
        done, calls = make("run-all", f"VENV={value}")
        assert done.returncode == 2 and not calls and "VENV is" in done.stderr


def test_a_quote_that_is_not_closed_is_named(make):
    done, calls = make("lab", "LAB_ARGS=--port '8888")
    assert done.returncode == 2 and not calls and "a quote is not closed in: --port '8888" in done.stderr


def test_a_kit_may_have_a_space_in_its_path_and_a_missing_one_is_named(make):
    kit = make.folder / "my kit"
    done, calls = make("run-all", "KIT=my kit")
    assert done.returncode == 2 and not calls and "there is no folder my kit" in done.stderr
    (kit / "wheels").mkdir(parents=True)
    _, calls = make("run-all", "KIT=my kit")
    assert f"MODELS_DIR={kit}/models" in calls
    _, calls = make("rehearse", "KIT=my kit")
    assert str(kit) in calls
    done, _ = make("-n", "-B", "setup", "KIT=my kit", "UV=")
    assert f"--no-index --find-links '{kit}/wheels'" in done.stdout and "--index-url" not in done.stdout


@pytest.mark.parametrize(
    ("kind", "index"), [("rocm", "rocm7.1"), ("cpu", "cpu"), ("cuda", None), ("torch==2.14.1", None)]
)
def test_torch_for_a_kind_of_hardware_comes_from_its_own_index(make, kind, index):
    done, _ = make("-n", "-B", "setup", f"TORCH={kind}", "UV=")
    pin = re.search(r"^TORCH_PIN := (.*)$", MAKEFILE, re.MULTILINE)[1]
    assert (f"set -- {pin}" if kind in ("rocm", "cpu", "cuda") else f"set -- {kind}") in done.stdout
    address = re.search(r"^ROCM_INDEX \?= (.*)/", MAKEFILE, re.MULTILINE)[1]
    assert (f"--index-url '{address}/{index}'" in done.stdout) if index else "--index-url" not in done.stdout


def test_clean_refuses_while_a_run_is_on(tmp_path):
    """On a copy, since it deletes."""
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "Makefile", "helpers"], capture_output=True, text=True
    ).stdout
    for name in tracked.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    result = tmp_path / "runs" / "tiny" / "status.json"
    clean = {"args": ["make", "clean"], "cwd": tmp_path, "capture_output": True, "text": True}
    with locked(result.parent, OSError):
        result.touch()
        done = subprocess.run(**clean)
        assert (
            done.returncode == 2 and "error: a run is using runs/tiny: wait for it" in done.stderr and result.exists()
        )
    assert subprocess.run(**clean).returncode == 0 and not result.exists()
