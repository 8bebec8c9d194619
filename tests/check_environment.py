"""A fresh environment, outside the repository, that the notebooks run in on the tiny profile.

    python tests/check_environment.py             what `make setup` makes, as in a conda environment: `make env-check`
    python tests/check_environment.py --newest    the newest release of every package, whatever the bounds: `make canary`

Exit code 0: all notebooks passed, pip sees no conflict, and (except with --newest) every version is the locked one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
# What comes with torch, whichever build it is, and what venv brings: the lock leaves these open.
WITH_TORCH = re.compile(
    r"torch|triton|pytorch|nvidia-(?!ml-py$)|cuda-|amd-|rocm(-sdk.*)?$|networkx$|sympy$|mpmath$|pip$"
)


def direct() -> dict[str, SpecifierSet]:
    """What pyproject.toml asks for, every extra included: canonical name and bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


def locked(file: str = "requirements.txt") -> dict[str, Version]:
    """The canonical name and the version of each package in a lock file."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return {canonicalize_name(name): Version(v) for name, v in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)}


class Environment:
    """A virtual environment in ``folder``."""

    def __init__(self, folder: Path, python: str, torch: str) -> None:
        command = ["make", "--no-print-directory", "setup", f"VENV={folder}", f"PYTHON={python}", f"TORCH={torch}"]
        subprocess.run(command, cwd=ROOT, check=True)
        self.python = folder / "bin" / "python"

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run([self.python, *arguments], cwd=ROOT, text=True, **options)

    def install(self, *arguments: str) -> None:
        self.run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments, check=True)

    def installed(self) -> dict[str, Version]:
        listed = self.run("-m", "pip", "list", "--format=json", "--exclude-editable", capture_output=True, check=True)
        return {canonicalize_name(one["name"]): Version(one["version"]) for one in json.loads(listed.stdout)}

    def conflicts(self) -> list[str]:
        """What pip says of packages whose wishes are not met."""
        done = self.run("-m", "pip", "check", stdout=subprocess.PIPE)
        return done.stdout.splitlines() if done.returncode else []

    def broken(self, scratch: Path) -> dict[str, str]:
        """Run the series offline on the tiny profile: notebook and reason of each that did not pass."""
        status = scratch / "runs" / "tiny" / "status.json"
        status.unlink(missing_ok=True)
        own = {"HF_HUB_OFFLINE": "1", "MODELS_DIR": str(scratch / "models"), "PYTHONPATH": str(ROOT)}
        chosen = ["--profile", "tiny", "--fresh", "--runs-dir", str(scratch / "runs")]
        self.run("-m", "helpers.headless", *chosen, env=os.environ | own)
        if not status.is_file():
            return {"helpers.headless": "did not start; its message is above"}
        notebooks = json.loads(status.read_text(encoding="utf-8"))["notebooks"]
        return {name: entry["why"] for name, entry in notebooks.items() if entry["status"] != "ok"}


def install_newest(fresh: Environment) -> None:
    """Every direct package by its bare name, so that no bound holds it back, around the torch that is there."""
    names = [name for name in direct() if name != "torch"]
    fresh.install("--upgrade", "--upgrade-strategy", "eager", f"torch=={fresh.installed()['torch']}", *names)
    fresh.install("--no-deps", "--no-build-isolation", "-e", ".")


def report_locked(there: dict[str, Version]) -> bool:
    """Print what differs from the lock; True if nothing does."""
    pins = locked()
    loose = [f"{n}=={v}" for n, v in there.items() if pins.get(n) != v and not WITH_TORCH.match(n)]
    print(f"{len(there)} packages; not as in requirements.txt: {', '.join(loose) or 'none'}", flush=True)
    return not loose


def report_newest(there: dict[str, Version]) -> list[str]:
    """Print what is newer than its pin, direct packages first; returns the direct ones."""
    pins, wanted = locked("requirements-tools.txt"), direct()
    moved = sorted((n for n, v in there.items() if n in pins and pins[n] != v), key=lambda n: (n not in wanted, n))
    for name in moved:
        outside = name in wanted and there[name] not in wanted[name]
        print(f"  {name}: {pins[name]} -> {there[name]}{'  outside its bounds in pyproject.toml' if outside else ''}")
    print(f"{len(moved)} of {len(there)} packages are not the pinned version", flush=True)
    return [name for name in moved if name in wanted]


def blame(fresh: Environment, scratch: Path, moved: list[str]) -> None:
    """Put each direct package that moved back to its pin, alone, until the notebooks pass."""
    pins = locked("requirements-tools.txt")
    for name in moved:
        newest = fresh.installed()[name]
        fresh.install(f"{name}=={pins[name]}")
        if not fresh.broken(scratch):
            print(f"{name} {newest} is what broke: with {pins[name]} all notebooks pass")
            return
        fresh.install(f"{name}=={newest}")
    print("no single direct package is to blame: with each of them back at its pin, some notebook still fails")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--newest", action="store_true", help="the newest releases of all packages")
    parser.add_argument("--python", default=sys.executable, help="the Python of the environment")
    parser.add_argument("--torch", default="cpu", help="which torch, as `make setup` takes it")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        fresh = Environment(scratch / "venv", chosen.python, chosen.torch)
        if chosen.newest:
            install_newest(fresh)
        there = fresh.installed()
        print(f"{fresh.run('--version', capture_output=True).stdout.strip()}, torch {there['torch']}")
        moved, fine = (report_newest(there), True) if chosen.newest else ([], report_locked(there))
        conflicts = fresh.conflicts()
        print("\n".join(conflicts) or "pip check: nothing missing, no conflict", flush=True)
        broken = fresh.broken(scratch)
        for name, why in broken.items():
            print(f"{name} broke: {why}")
        if broken and chosen.newest:
            blame(fresh, scratch, moved)
    print("all notebooks pass on the tiny profile" if not broken else f"{len(broken)} notebook(s) broke")
    return 0 if fine and not conflicts and not broken else 1


if __name__ == "__main__":
    sys.exit(main())
