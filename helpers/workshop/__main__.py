"""``python -m helpers.workshop``: pack finished runs, fetch an offline kit, rehearse the series from it, choose its profile."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.headless import find_notebooks
from helpers.records import write_atomically
from helpers.settings import ROOT, settings_for, shown
from helpers.sources import models_folder
from helpers.workshop import kit
from helpers.workshop.archives import pack

INSIDE = "FINE_TUNING_KIT"  # set in the process that works from the folder
_PROFILE = re.compile(r'("profile = \\")[\w-]+(?=\\")')  # as a notebook file spells it


def main() -> int:
    """Run one of the commands; the exit code is 1 for a rehearsal that failed and 2 for one that could not be held."""
    parser = argparse.ArgumentParser(prog="make catch-up, make fetch, make rehearse, make lab")
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("catch-up", help="pack finished runs for those who lost theirs, an archive each")
    packing.add_argument("--methods", default="base lora full", help="whose runs; a full model is as large as its base")
    packing.add_argument("--seed", type=int, default=0)
    packing.add_argument("--runs-dir", default="runs")
    packing.add_argument("--to", type=Path, default=models_folder(), help="a folder; by default that of the models")
    for name in ("fetch", "rehearse"):
        commands.add_parser(name).add_argument("folder", type=Path)
    commands.choices["rehearse"].add_argument("--notebooks", default="")
    commands.add_parser("lab", help="write the profile into the parameters cell of each notebook, where you can see it")
    for command in commands.choices.values():
        command.add_argument("--profile", default="small")
    given = parser.parse_args()
    try:
        return {"catch-up": _pack, "fetch": _in_kit, "rehearse": _in_kit, "lab": _choose_profile}[given.command](given)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _choose_profile(given: argparse.Namespace) -> int:
    settings_for(given.profile)
    for notebook in find_notebooks():
        text = notebook.read_text(encoding="utf-8")
        if (new := _PROFILE.sub(rf"\g<1>{given.profile}", text, count=1)) != text:
            write_atomically(notebook, new)
            print(f'{notebook.stem}: its parameters cell now says profile = "{given.profile}"')
    return 0


def _pack(given: argparse.Namespace) -> int:
    settings = settings_for(given.profile, seed=given.seed, runs_dir=given.runs_dir)
    for method in given.methods.split():
        archive = pack(settings, method, given.to.expanduser())  # make quotes it, so no shell has replaced a `~`
        print(f"{shown(archive)}  {archive.stat().st_size / 1e6:.1f} MB")
    print(f"to serve them in a room: python -m http.server 8000 --directory {shown(given.to)}")
    return 0


def _in_kit(given: argparse.Namespace) -> int:
    """Run the command again in a process whose libraries read from the folder, and that has no network to rehearse in."""
    folder = given.folder.expanduser().resolve()
    settings_for(given.profile)
    if os.environ.get(INSIDE) != str(folder):
        cut = kit.WITHOUT_NETWORK if given.command == "rehearse" else []
        if cut and subprocess.run([*cut, "true"], capture_output=True).returncode:
            raise kit.KitError(f"this account may not run a process without a network ({' '.join(cut)} fails)")
        inside = kit.environment(folder) | {INSIDE: str(folder)} | ({"HF_HUB_OFFLINE": "1"} if cut else {})
        command = [*cut, sys.executable, "-m", "helpers.workshop", *sys.argv[1:]]
        return subprocess.run(command, env=os.environ | inside, cwd=ROOT).returncode
    if given.command == "fetch":
        kit.fetch(given.profile, folder)
        return 0
    failed = kit.rehearse(given.profile, folder, given.notebooks)
    if not failed:
        print("All of this works from the folder.")
        return 0
    print("Without this network the workshop would have failed:", *failed, sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
