"""A workshop without a network: ``fetch`` brings what a profile needs into one folder, ``rehearse`` proves it is enough.

The folder holds ``models``, ``hub`` and ``datasets`` (the caches of the Hugging Face libraries), perhaps ``wheels``, and
``kit.json``, its manifest, written last. It holds no token. For the profiles with bundled data it may be read-only.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.data import read
from helpers.headless import find_notebooks, run_all
from helpers.records import read_json, sha256, write_atomically
from helpers.settings import ROOT, settings_for
from helpers.sources import resolve
from helpers.storage import sha256_if_there

MANIFEST = "kit.json"
FOLDERS = {"MODELS_DIR": "models", "HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets"}
WITHOUT_NETWORK = ["unshare", "--map-root-user", "--net", "--mount"]  # of util-linux, before a command


class KitError(RuntimeError):
    """A folder that cannot be filled or used; the message says why and what to do."""


def environment(kit: Path) -> dict[str, str]:
    """The variables that make the series read from this folder; the Makefile sets the same ones for KIT=folder."""
    return {variable: str(kit / name) for variable, name in FOLDERS.items()}


def fetch(profile: str, kit: Path) -> None:
    """Bring the model and the data of a profile into the folder, and list everything in it with its sha256.

    The process has to run with :func:`environment`, which the libraries read when they are imported.

    Raises:
        KitError: if the folder holds something else.
    """
    settings = settings_for(profile)
    kit.mkdir(parents=True, exist_ok=True)
    if strangers := {f.name for f in kit.iterdir()} - {MANIFEST, "wheels", *FOLDERS.values()}:
        raise KitError(f"{kit} holds {min(strangers)!r}, which is not part of a kit: choose an empty folder")
    if (kit / MANIFEST).exists():
        _read_manifest(profile, kit)  # a file of that name that is not ours is not replaced
        (kit / MANIFEST).unlink()
    resolve(settings_for("tiny"))  # for the tests, and for anyone who wants to see that the rest works
    print("model:", resolve(settings).folder)
    print("rows:", {split: len(rows) for split, rows in read(settings)[0].items()})
    found = sorted(f for f in kit.rglob("*") if f.is_file() and f.suffix != ".lock")
    files = {file.relative_to(kit).as_posix(): sha256(file) for file in found}
    write_atomically(kit / MANIFEST, json.dumps({"profile": profile, "files": files}, indent=1))
    size = sum(file.stat().st_size for file in found)
    print(f"{len(files)} files, {size / 1e9:.2f} GB in {kit}; try it with: make rehearse PROFILE={profile} KIT={kit}")


def _read_manifest(profile: str, kit: Path) -> dict:
    hint = f"make fetch PROFILE={profile} TO={kit} writes it when all is there"
    keys = {"profile": str, "files": dict}
    try:
        return read_json(kit / MANIFEST, lambda reason: KitError(f"{reason}; {hint}"), keys)
    except FileNotFoundError:
        raise KitError(f"there is no {MANIFEST} in {kit}: {hint}") from None


def faults(profile: str, kit: Path) -> list[str]:
    """What is wrong with the folder itself: files missing, damaged, or fetched for another profile.

    Raises:
        KitError: if it is no such folder, or one whose fetching was interrupted.
    """
    manifest, found = _read_manifest(profile, kit), []
    if manifest["profile"] != profile and profile != "tiny":
        found.append(f"it was fetched for the profile {manifest['profile']}, not {profile}")
    for name, expected in manifest["files"].items():
        if sha256_if_there(kit / name) != expected:
            found.append(f"{name[:300]} is missing or damaged: its sha256 is not the one in {MANIFEST}")
    return found


def rehearse(profile: str, kit: Path, notebooks: str) -> list[str]:
    """Run the series from the folder, which has to be read-only by now, in a process that has no network.

    Returns:
        What failed. Prints what was rehearsed, and that it was a part if it was.

    Raises:
        KitError: if the folder is none that ``fetch`` filled.
    """
    failed, fetched = faults(profile, kit), _read_manifest(profile, kit)["profile"]
    _cut_off(kit)
    if (kit / "wheels").is_dir():
        failed += _install(kit / "wheels")
    chosen = find_notebooks(notebooks)
    with tempfile.TemporaryDirectory() as runs:
        if (kit / FOLDERS["HF_DATASETS_CACHE"]).is_dir():  # datasets locks what it reads, so a seat needs a copy, too
            cache = shutil.copytree(kit / FOLDERS["HF_DATASETS_CACHE"], Path(runs, "datasets"))
            os.environ["HF_DATASETS_CACHE"] = str(cache)
        for notebook in chosen:
            lines: list[str] = []
            end = run_all(profile, notebook.stem, runs_dir=runs, say=lines.append)
            print(lines[-2], flush=True)
            if end == "interrupted":
                raise KeyboardInterrupt
            failed += [lines[-2]] * (end != "ok")
    total = len(find_notebooks())
    if len(chosen) < total or fetched != profile:
        print(f"This was a part: {len(chosen)} of {total} notebooks, profile {profile}.")
        print(f"Before the workshop, rehearse all of it: make rehearse PROFILE={fetched} KIT={kit}")
    return failed


def _install(wheels: Path) -> list[str]:
    """What an installation from these wheels alone, as the set-up does it, would fail at."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-index"]
    own = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")} | {"PIP_CONFIG_FILE": os.devnull}
    for packages in (["torch"], ["--no-deps", "--require-hashes", "-r", "requirements.txt"]):
        command = [*pip, "--find-links", wheels, *packages]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=own)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["pip gives no reason"])[-1]
            return [f"the wheels are not enough for an installation: {why}"]
    print("installation from the wheels: would work")
    return []


def _cut_off(kit: Path) -> None:
    """Make the folder read-only, and bring up the loopback that kernels talk over, which is all the network there is."""
    for options in (["--bind", kit, kit], ["-o", "remount,bind,ro", kit]):
        subprocess.run(["mount", *options], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
    print(f"without a network, and {kit} is read-only", flush=True)
