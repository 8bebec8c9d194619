"""The image, checked without building it, and the page about it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import image_build
import pytest
import yaml
from image_build import LOCKED_DOWN, TOOLS
from test_packaging import read, torch_pin

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="checks of the repository, not of an image")


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of Dockerfile.rocm: keyword and rest, continuation lines joined, comments left out."""
    lines = [line for line in read("Dockerfile.rocm").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def instructions(keyword: str) -> list[str]:
    return [rest for word, rest in dockerfile() if word == keyword]


def test_image_base_is_an_argument_pinned_by_tag():
    assert instructions("FROM") == ["${BASE_IMAGE}"]
    (base,) = [rest for rest in instructions("ARG") if rest.startswith("BASE_IMAGE=")]
    tag = base.partition("=")[2].rpartition("/")[2].partition(":")[2]
    assert re.search(r"rocm\d+\.\d+.*pytorch.*\d+\.\d+", tag), f"{base}: no tag with the versions of ROCm and PyTorch"


def test_image_keeps_the_torch_of_its_base():
    (step,) = [run for run in instructions("RUN") if "pip install" in run]
    installs = re.findall(r"pip install (.*?) &&", step)
    assert len(installs) == 2 and all("--no-deps" in install for install in installs)
    assert "--require-hashes -r requirements.txt" in installs[0]


def test_image_file_has_no_lint():
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not here: make tools")
    done = subprocess.run([hadolint, ROOT / "Dockerfile.rocm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_image_check_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "check_image.py"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "apt-get install" in done.stderr and all(tool in done.stderr for tool in TOOLS)


def test_the_builds_get_the_pip_configuration_of_this_machine(tmp_path, monkeypatch):
    index, wheels = tmp_path / "packages" / "simple", tmp_path / "wheels"
    index.mkdir(parents=True)
    wheels.mkdir()
    printed = f":env:.find-links='{wheels}'\nglobal.find-links='/elsewhere'\nglobal.extra-index-url='https://a.example file://{index}'\n"
    monkeypatch.setattr(image_build, "sh", lambda *command: subprocess.CompletedProcess(command, 0, printed))
    mounts = image_build.pip_configuration(tmp_path)
    assert mounts == [
        f"{tmp_path}/pip.conf:/etc/pip.conf:ro",
        f"{index.parent}:{index.parent}:ro",
        f"{wheels}:{wheels}:ro",
    ]
    text = (tmp_path / "pip.conf").read_text()
    assert text == f"[global]\nfind-links = {wheels}\nextra-index-url = https://a.example file://{index}\n"
    monkeypatch.setattr(image_build, "sh", lambda *command: subprocess.CompletedProcess(command, 0, ""))
    assert image_build.pip_configuration(tmp_path) == []


def test_image_has_health_check_volume_and_labels():
    assert len(instructions("HEALTHCHECK")) == 1
    environment = dict(re.findall(r"(\w+)=(\S+)", instructions("ENV")[0]))
    assert environment["MODELS_DIR"] in yaml.safe_load(instructions("VOLUME")[0])
    assert "org.opencontainers.image.licenses" in instructions("LABEL")[0]
    exported = re.findall(r"^export ((?:MALLOC|TOKENIZERS)\w+) := (.*)$", read("Makefile"), re.MULTILINE)
    assert exported
    for name, value in exported:
        assert environment.get(name) == value, f"{name} differs from the Makefile"


def test_image_gets_every_file_it_needs():
    let_in = [line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")]
    assert not [name for name in let_in if not (ROOT / name).exists()]
    assert {"helpers", "notebooks", "tests", "Makefile", "pyproject.toml", "requirements.txt"} <= set(let_in)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read("docs/container.md"), re.DOTALL | re.MULTILINE)


def test_container_commands_give_only_what_is_needed():
    runs = [block.replace("\\\n", " ") for block in blocks("bash") if block.startswith("docker run")]
    assert len(runs) == 2
    for command in runs:
        assert " ".join(LOCKED_DOWN) in " ".join(command.split()), "not as locked down as `make image-check` runs it"
        assert re.findall(r"--device (\S+)", command) == ["/dev/kfd", "/dev/dri/renderD128"]
        assert all(port.startswith("127.0.0.1:") for port in re.findall(r"-p (\S+)", command))
        assert not re.search(r"privileged|--network|--ipc|--cap-add|seccomp|--user", command)


def test_container_seats_share_no_card_no_port_and_no_results():
    (block,) = blocks("yaml")
    compose = yaml.safe_load(block)
    seats = list(compose["services"].values())
    assert len(seats) > 1
    for part in ("ports", "devices", "volumes"):
        own = [set(seat[part]) - {"/dev/kfd", "models:/models"} for seat in seats]
        assert all(own) and not set.intersection(*own), f"two seats share {part}"
    for seat in seats:
        assert seat["cap_drop"] == ["ALL"] and seat["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in seat["ports"])
        assert not {"privileged", "network_mode", "ipc", "cap_add", "pid", "user"} & set(seat)
        assert {volume.partition(":")[0] for volume in seat["volumes"]} <= set(compose["volumes"])


def test_container_page_names_the_base_of_the_image():
    (base,) = [rest.partition("=")[2] for rest in instructions("ARG") if rest.startswith("BASE_IMAGE=")]
    assert f"`{base}`, the default" in read("docs/container.md")
    assert base.endswith(f"pytorch_release_{next(iter(torch_pin().specifier)).version}"), "not the torch that is pinned"
