"""The images that tests/check_image.py tries, built with buildah: a stand-in for AMD's, the image itself, a bare Debian."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("buildah", "podman", "runc", "mmdebstrap", "chromium")
APT_LINE = "apt-get install -y --no-install-recommends buildah podman runc mmdebstrap debian-archive-keyring chromium"
STAND_IN, IMAGE, LAB = "localhost/fine-tuning-stand-in", "localhost/fine-tuning-rocm:check", "fine-tuning-check"
NEWCOMER = "localhost/fine-tuning-newcomer:check"
VOLUMES = ("-v", f"{LAB}-models:/models", "-v", f"{LAB}-runs:/series/runs")
# As in docs/container.md, without the devices. The limits are lower than podman's own, which not every host grants.
LOCKED_DOWN = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")
RUN = (*LOCKED_DOWN, "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
STAND_IN_FILE = """\
FROM localhost/fine-tuning-bare
ARG TORCH
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --quiet --disable-pip-version-check --no-cache-dir ${TORCH}
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""
# What a dev container does: its image has git and make, its user is not root, and its command is that of devcontainer.json.
NEWCOMER_FILE = """\
FROM localhost/fine-tuning-bare
ARG COMMAND
RUN apt-get update && apt-get install -y --no-install-recommends git make && useradd --create-home vscode
COPY --chown=vscode . /workspaces/series
WORKDIR /workspaces/series
RUN chown vscode .
USER vscode
RUN ${COMMAND} && make run-all PROFILE=tiny NOTEBOOKS="00 01"
"""


class CheckError(RuntimeError):
    """Something the image promises does not hold, or a tool is missing; the message says what."""


def sh(*command: str, ok: bool = True, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if ok and done.returncode:
        told = (done.stdout + done.stderr)[-3000:]
        raise CheckError(f"{' '.join(command[:6])} … ended with {done.returncode}:\n{told}")
    return done


def podman(*arguments: str, **options) -> str:
    return sh("podman", "--runtime", "runc", *arguments, **options).stdout.strip()


def say(text: str) -> None:
    print(text, flush=True)


def expect(holds: bool, promise: str) -> None:
    if not holds:
        raise CheckError(f"does not hold: {promise}")
    say(f"ok  {promise}")


def need_tools() -> None:
    missing = [name for name in TOOLS if not shutil.which(name)]
    if missing:
        raise CheckError(f"{', '.join(missing)} not found; on Debian or Ubuntu, as root:\n  {APT_LINE}")
    try:
        import playwright  # noqa: F401
    except ModuleNotFoundError:
        raise CheckError("playwright is not in this Python: run this through `make image-check`") from None


def pip_configuration(folder: Path) -> list[str]:
    """Mounts that lend a build pip's configuration on this machine: all of it in one file, and the local paths it names."""
    options: dict[str, str] = {}
    for line in sh(sys.executable, "-m", "pip", "config", "list").stdout.splitlines():
        name, _, value = line.partition("=")  # the environment's come first, and win
        options.setdefault(name.rpartition(".")[2], ast.literal_eval(value))
    if not options:
        return []
    say(f"the builds get this machine's pip configuration: {', '.join(sorted(options))}")
    file = folder / "pip.conf"
    file.write_text("[global]\n" + "".join(f"{name} = {' '.join(v.split())}\n" for name, v in options.items()))
    paths = set()
    for name, value in options.items():
        named = [Path(word.removeprefix("file://")) for word in value.split() if word.startswith(("/", "file:///"))]
        paths |= {
            path.parent if "index" in name else path for path in named if path.exists()
        }  # an index leads to files beside it
    return [f"{file}:/etc/pip.conf:ro", *(f"{path}:{path}:ro" for path in sorted(paths))]


def make_stand_in(torch: str, mounts: list[str]) -> str:
    """A Debian with Python and ``torch``, made once for each ``torch``; returns the image's name."""
    name = f"{STAND_IN}:{re.sub(r'[^a-z0-9.]+', '-', torch.lower()).strip('-')}"
    if sh("podman", "image", "exists", name, ok=False).returncode:
        say(f"making the stand-in with {torch}")
        make = "mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv bookworm -"
        rootfs = subprocess.Popen(make.split(), stdout=subprocess.PIPE)
        podman("import", "-", "localhost/fine-tuning-bare", stdin=rootfs.stdout)
        if rootfs.wait():
            raise CheckError("mmdebstrap failed; its message is above")
        build(name, mounts, f"TORCH={torch}", "-f", "-", str(ROOT), input=STAND_IN_FILE)
    return name


def build(name: str, mounts: list[str], argument: str, *rest: str, **options) -> None:
    """buildah without an engine or privileges of its own; ``--format docker`` because OCI has no health checks."""
    volumes = [part for mount in mounts for part in ("-v", mount)]
    started = time.monotonic()
    sh("buildah", "bud", "--isolation", "chroot", "--format", "docker", "--layers", *volumes, "--build-arg", argument,
       "-t", name, *rest, **options)  # fmt: skip
    size = int(sh("podman", "image", "inspect", "-f", "{{.Size}}", name).stdout)
    say(f"built {name} in {time.monotonic() - started:.0f} s, {size / 1e9:.2f} GB")


def make_newcomer(mounts: list[str]) -> None:
    """The dev container's command in a bare Debian, by a user who is not root, and two notebooks after it."""
    command = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))[
        "postCreateCommand"
    ]
    build(NEWCOMER, mounts, f"COMMAND={command}", "-f", "-", str(ROOT), input=NEWCOMER_FILE)
    say(f"ok  `{command}` and two notebooks in a bare Debian, as an ordinary user")
