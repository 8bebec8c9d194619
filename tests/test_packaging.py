"""The files around the code agree with each other: dependencies, environments, image, README, and what git holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from check_environment import TORCHS_OWN, blame, direct, locked, pip_part
from check_image import LOCKED_DOWN, TOOLS
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="checks of the repository, not of an image")

REGISTRIES = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.(com|org)|prefix\.dev|npmjs\.")
MACHINE_PATHS = re.compile(r"(?<![\w.$~<>{}-])/(work|root|home|Users|tmp/w)/\w")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tracked() -> list[str]:
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def texts() -> dict[str, str]:
    """The tracked files that are text."""
    found = {}
    for name in tracked():
        raw = (ROOT / name).read_bytes()
        if b"\0" not in raw:
            found[name] = raw.decode("utf-8")
    return found


def project() -> dict:
    return tomllib.loads(read("pyproject.toml"))["project"]


def make_variable(name: str) -> str:
    return re.search(rf"^(?:export )?{name} [?:]= (.*)$", read("Makefile"), re.MULTILINE)[1]


def torch_pin() -> Requirement:
    return Requirement(re.match(r"torch==[\d.]+", make_variable("TORCH"))[0])


# --- dependencies and environments --------------------------------------------------------------------------------


def test_every_dependency_is_pinned_within_its_bounds():
    for name, allowed in direct().items():
        version = Version(next(iter(torch_pin().specifier)).version) if name == "torch" else locked().get(name)
        assert version is not None, f"{name} has no pin in constraints.txt"
        assert version in allowed, f"{name} {version} is outside {allowed}"


def test_constraints_are_one_pin_for_each_name():
    lines = read("constraints.txt").splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert len(locked()) == len(lines), "a package has two pins"
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower())


def test_constraints_leave_to_torch_what_is_torchs():
    own = [name for name in locked() if TORCHS_OWN.match(name)]
    assert not own, f"{own}: each build of torch brings its own; a pin makes all other builds impossible to install"


def conda() -> dict:
    return yaml.safe_load(read("environment.yml"))


def test_conda_channels_are_a_list_of_names():
    channels = conda()["channels"]
    assert isinstance(channels, list) and channels and all(re.fullmatch(r"[\w-]+", c) for c in channels)


def test_conda_understands_its_lines():
    rattler = pytest.importorskip("rattler", reason="py-rattler is not here: make checks")
    for line in conda()["dependencies"]:
        if isinstance(line, str):
            rattler.MatchSpec(line)
    with pytest.raises(Exception, match="spec"):
        rattler.MatchSpec("python=>3.11")  # the parser does refuse what conda does not take


def test_conda_python_is_that_of_the_package():
    wanted = [line for line in conda()["dependencies"] if isinstance(line, str) and line.startswith("python")]
    specifier = SpecifierSet(wanted[0].removeprefix("python"))
    oldest = SpecifierSet(project()["requires-python"])
    assert str(oldest) in map(str, specifier)
    assert [f"3.{m}" for m in range(15) if f"3.{m}" in specifier] == ["3.11", "3.12", "3.13"]


def test_conda_pip_part_says_nothing_but_what_pyproject_and_makefile_say():
    assert "-c constraints.txt" in pip_part() and "-e .[test]" in pip_part()
    for line in pip_part():
        if line.startswith("-"):
            assert line in ("-c constraints.txt", "-e .[test]")
            continue
        asked = Requirement(line)
        assert canonicalize_name(asked.name) in direct(), f"{line}: pyproject.toml does not know {asked.name}"
        assert asked.name == "torch" and asked == torch_pin(), f"{line}: the bounds in pyproject.toml suffice"
    comment = f"pip install {torch_pin()} --index-url"
    assert comment in read("environment.yml"), "the ROCm steps in the comment name another torch"


class OnePackageBreaks:
    """Stands for an environment in which the notebooks fail as long as ``culprit`` is not at its pin."""

    def __init__(self, culprit: str) -> None:
        self.there, self.culprit = {name: Version("999") for name in ("trl", "peft", "datasets")}, culprit

    def installed(self) -> dict[str, Version]:
        return dict(self.there)

    def install(self, wish: str) -> None:
        name, _, version = wish.partition("==")
        self.there[name] = Version(version)

    def broken(self, scratch: Path) -> dict[str, str]:
        return {} if self.there.get(self.culprit) == locked()[self.culprit] else {"02_lora_train": "TypeError"}


@pytest.mark.parametrize("kind", ["cpu", "rocm"])
def test_torch_for_a_kind_of_hardware_comes_from_its_own_index(kind, tmp_path):
    asked = ["make", "-n", "setup", f"TORCH={kind}", f"VENV={tmp_path}"]
    said = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    index = re.sub(r"rocm[\d.]+$", "cpu", make_variable("ROCM_INDEX")) if kind == "cpu" else make_variable("ROCM_INDEX")
    assert f"pip install --quiet --disable-pip-version-check {torch_pin()} --index-url {index};" in said


def test_the_canary_names_the_package_that_broke(tmp_path, capsys):
    blame(OnePackageBreaks("peft"), tmp_path, ["trl", "peft", "datasets"])
    assert capsys.readouterr().out == f"peft 999 is what broke: with {locked()['peft']} all notebooks pass\n"
    blame(OnePackageBreaks("numpy"), tmp_path, ["trl", "peft", "datasets"])
    assert "no single direct package" in capsys.readouterr().out


# --- the image ----------------------------------------------------------------------------------------------------


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
    before, _, after = step.partition("pip install")
    assert "torchs_own > .venv/torch.txt" in before
    assert "-c constraints.txt -c .venv/torch.txt -e '.[test]'" in after
    assert "torchs_own | cmp - .venv/torch.txt" in after
    (pattern,) = re.findall(r"grep -E '(.*?)'", before)
    kept = (
        "torch==1 torchvision==1 triton==3 pytorch-triton-rocm==3 amd-torch-device-gfx942==2 rocm==10 rocm-sdk-core==10"
    )
    assert all(re.match(pattern, line) for line in kept.split())
    assert not re.match(pattern, f"{project()['name']}==0.1.0")


def test_image_file_has_no_lint():
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not here: make checks")
    done = subprocess.run([hadolint, ROOT / "Dockerfile.rocm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_image_check_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "check_image.py"], env={"PATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "apt-get install" in done.stderr and all(tool in done.stderr for tool in TOOLS)


def test_image_has_health_check_volume_and_labels():
    assert len(instructions("HEALTHCHECK")) == 1
    environment = dict(re.findall(r"(\w+)=(\S+)", instructions("ENV")[0]))
    assert environment["MODELS_DIR"] in yaml.safe_load(instructions("VOLUME")[0])
    assert "org.opencontainers.image.licenses" in instructions("LABEL")[0]
    exported = re.findall(r"^export (\w+) := (.*)$", read("Makefile"), re.MULTILINE)
    assert exported
    for name, value in exported:
        assert environment.get(name) == value, f"{name} differs from the Makefile"


def test_image_gets_every_file_it_needs():
    let_in = [line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")]
    assert not [name for name in let_in if not (ROOT / name).exists()]
    assert {"helpers", "notebooks", "tests", "Makefile", "pyproject.toml", "constraints.txt"} <= set(let_in)


# --- the page on containers ---------------------------------------------------------------------------------------


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


# --- the README ---------------------------------------------------------------------------------------------------


def tree() -> dict[str, set[str]]:
    """The tree in the README: the paths that are listed below each folder; ``""`` is the repository."""
    block = re.search(r"^## The tree\n+```text\n(.*?)```", read("README.md"), re.DOTALL | re.MULTILINE)[1]
    listed, folders = {"": set()}, [""]
    for line in block.splitlines():
        name, phrase = line.strip().split(None, 1)
        assert phrase, f"{name} has no phrase"
        parent = folders[(len(line) - len(line.lstrip())) // 2]
        listed.setdefault(parent, set()).add(parent + name)
        folders[(len(line) - len(line.lstrip())) // 2 + 1 :] = [parent + name]
    return listed


def test_the_tree_in_the_readme_is_the_tree():
    """Pages, notebooks and names that begin with a dot or an underscore are left out of it."""
    for folder, listed in tree().items():
        below = {name.removeprefix(folder) for name in tracked() if name.startswith(folder)}
        held = {name.split("/")[0] + "/" * ("/" in name) for name in below if name}
        held = {
            name for name in held if name[0] not in "._" and not name.endswith((".md", ".ipynb")) and name != "LICENSE"
        }
        assert listed == {folder + name for name in held}, f"{folder or 'the top'} in README.md and in git differ"


def anchors(text: str) -> set[str]:
    return {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}


def test_links_in_pages_lead_somewhere():
    there = set(tracked())
    links = [(page, t) for page in there if page.endswith(".md") for t in re.findall(r"\]\(([^)\s]+)\)", read(page))]
    assert links
    for page, target in links:
        if not re.match(r"https?://", target):
            name, _, anchor = target.partition("#")
            file = os.path.normpath(os.path.join(os.path.dirname(page), name)) if name else page
            assert any(f"{name}/".startswith(f"{file}/") for name in there), f"{page}: {target} is not in git"
            assert not anchor or anchor in anchors(read(file)), f"{page}: no heading {target}"


def test_the_pages_name_what_the_makefile_has():
    targets = set(re.findall(r"^([a-z][\w-]*):", read("Makefile"), re.MULTILINE))
    for page in (name for name in tracked() if name.endswith(".md")):
        assert set(re.findall(r"(?:`|^)make ([a-z-]+)(?:[`\s]|$)", read(page), re.M)) <= targets, page
    assert f"pip install {torch_pin()} " in read("docs/setup.md")


# --- what git holds -----------------------------------------------------------------------------------------------


def test_no_file_names_a_package_registry_but_rocm_index():
    for name, text in texts().items():
        for line in text.splitlines():
            if name == "Makefile" and line.startswith("ROCM_INDEX ?= "):
                continue
            assert not REGISTRIES.search(line), f"{name} names a package registry: {line.strip()[:100]}"


def test_no_file_holds_a_path_of_the_machine_it_was_written_on():
    for name, text in texts().items():
        assert not (found := MACHINE_PATHS.search(text)), f"{name}: {text[found.start() :][:60]!r}"
