"""A workshop without a network: ``fetch`` brings what a profile needs into one folder, ``rehearse`` proves it is enough.

``make fetch PROFILE=small TO=kit`` and ``make rehearse PROFILE=small KIT=kit`` call this. The folder holds ``models``,
``hub`` and ``datasets`` (the caches of the Hugging Face libraries), perhaps ``wheels``, and ``kit.json``, its manifest,
written last. It holds no token. For the profiles with bundled data it may be read-only when it is used.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from helpers.records import write_atomically
from helpers.settings import ROOT, SettingsError, settings_for

MANIFEST = "kit.json"
INSIDE = "FINE_TUNING_REHEARSAL"  # set in the process that runs without a network


class KitError(RuntimeError):
    """A folder that cannot be filled or used; the message says why and what to do."""


def environment(kit: Path) -> dict[str, str]:
    """The variables that make the series read from this folder; the Makefile sets the same ones for KIT=folder."""
    return {
        "MODELS_DIR": str(kit / "models"),
        "HF_HUB_CACHE": str(kit / "hub"),
        "HF_DATASETS_CACHE": str(kit / "datasets"),
    }


def fetch(profile: str, kit: Path) -> None:
    """Bring the model and the data of a profile into the folder, and list everything in it with its sha256."""
    os.environ |= environment(kit)  # before the libraries are imported: they read it once
    from helpers.data import read
    from helpers.sources import resolve

    settings = settings_for(profile)
    kit.mkdir(parents=True, exist_ok=True)
    (kit / MANIFEST).unlink(missing_ok=True)
    resolve(settings_for("tiny"))  # for the tests, and for whoever wants to see that the rest works
    print("model:", resolve(settings).folder)
    print("rows:", {split: len(rows) for split, rows in read(settings)[0].items()})
    files = {name: _sha256(kit / name) for name in _files(kit)}
    write_atomically(kit / MANIFEST, json.dumps({"profile": profile, "files": files}, indent=1))
    size = sum((kit / name).stat().st_size for name in files)
    print(f"{len(files)} files, {size / 1e9:.2f} GB in {kit}; try it with: make rehearse PROFILE={profile} KIT={kit}")


def _files(kit: Path) -> list[str]:
    return sorted(
        str(f.relative_to(kit)) for f in kit.rglob("*") if f.is_file() and f.name != MANIFEST and f.suffix != ".lock"
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def faults(profile: str, kit: Path) -> list[str]:
    """What is wrong with the folder itself: files missing, damaged, or fetched for another profile.

    Raises:
        KitError: if it is no such folder, or one whose fetching was interrupted.
    """
    if not (kit / MANIFEST).is_file():
        raise KitError(
            f"there is no {MANIFEST} in {kit}: make fetch PROFILE={profile} TO={kit} writes it when all is there"
        )
    manifest = json.loads((kit / MANIFEST).read_text(encoding="utf-8"))
    found = []
    if manifest["profile"] != profile and profile != "tiny":
        found.append(f"it was fetched for the profile {manifest['profile']}, not {profile}")
    for name, expected in manifest["files"].items():
        if not (kit / name).is_file():
            found.append(f"{name} is missing")
        elif _sha256(kit / name) != expected:
            found.append(f"{name} is damaged: its sha256 is not the one in {MANIFEST}")
    return found


def rehearse(profile: str, kit: Path, notebooks: str) -> list[str]:
    """Run the series from the read-only folder in a process without a network.

    Returns:
        What failed, one line each; empty if the workshop can be held.
    """
    failed = faults(profile, kit)
    _cut_off(kit)
    os.environ |= environment(kit) | {"HF_HUB_OFFLINE": "1"}
    from helpers.headless import find_notebooks, run_all

    if (kit / "wheels").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-index",
                   "--find-links", str(kit / "wheels"), "-c", "constraints.txt", f"{ROOT}[test]"]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            failed.append(f"the wheels do not suffice for an installation: {done.stderr.strip().splitlines()[-1]}")
        print(f"installation from the wheels: {'fails' if done.returncode else 'would work'}")
    with tempfile.TemporaryDirectory() as runs:
        for notebook in find_notebooks(notebooks):
            end = run_all(profile, notebook.stem, runs_dir=runs, say=lambda line: None)
            status = json.loads((Path(runs) / profile / "status.json").read_text(encoding="utf-8"))["notebooks"]
            entry = status[notebook.stem]
            print(f"{notebook.stem}: {end}, {entry['seconds']:.0f} s", flush=True)
            if end == "interrupted":
                raise KeyboardInterrupt
            if end != "ok":
                failed.append(f"{notebook.stem}, {entry.get('heading') or 'at its start'}: {entry['why']}")
    return failed


def _cut_off(kit: Path) -> None:
    """Make the folder read-only, bring up the loopback that kernels talk over, and make sure that no other route exists."""
    subprocess.run(["mount", "--bind", kit, kit], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", kit], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up = struct.pack("16sh", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(control, 0x8914, up)  # SIOCSIFFLAGS
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=5).close()
        raise KitError("the network could not be cut off: nothing would be proved")
    except OSError as error:
        print(f"network: cut off ({error.strerror})")
    try:
        (kit / "probe").touch()
        raise KitError(f"{kit} could not be made read-only: nothing would be proved")
    except OSError as error:
        print(f"{kit}: {error.strerror}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fetch / make rehearse")
    parser.add_argument("what", choices=("fetch", "rehearse"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profile", default="small")
    parser.add_argument("--notebooks", default="")
    given = parser.parse_args()
    kit = given.folder.expanduser().resolve()
    try:
        settings_for(given.profile)
        if given.what == "fetch":
            fetch(given.profile, kit)
            return 0
        if os.environ.get(INSIDE) != "yes":
            if not shutil.which("unshare"):
                raise KitError("the rehearsal needs unshare of util-linux, to make a process without a network")
            cut = [
                "unshare",
                "--map-root-user",
                "--net",
                "--mount",
                sys.executable,
                "-m",
                "helpers.workshop.kit",
                *sys.argv[1:],
            ]
            return subprocess.run(cut, env=os.environ | {INSIDE: "yes"}, cwd=ROOT).returncode
        failed = rehearse(given.profile, kit, given.notebooks)
    except Exception as error:
        if not isinstance(error, KitError | SettingsError | ValueError | RuntimeError | OSError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        "\n".join(["Without this network the workshop would have failed:", *failed])
        if failed
        else "The workshop can be held from this folder."
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
