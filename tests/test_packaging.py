"""The files around the code agree with each other: dependencies, environments, image, README, and what git holds."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="checks of the repository, not of an image")

REGISTRIES = re.compile(r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|anaconda\.(com|org)|prefix\.dev|npmjs\.")
MACHINE_PATHS = re.compile(r"(?<![\w.$~<>{}-])/(work|root|home|Users|tmp/w)/\w")
FORBIDDEN = re.compile(r"trust_remote_code\s*=\s*True|weights_only\s*=\s*False|\btorch\.load\b")
TORCHS_OWN = re.compile(r"torch|triton|pytorch|nvidia-|amd-")  # these come with torch, whichever it is


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


def bounds() -> dict[str, SpecifierSet]:
    """What pyproject.toml asks for, all extras included, by canonical name."""
    lines = project()["dependencies"] + sum(project()["optional-dependencies"].values(), [])
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


def pins() -> dict[str, Version]:
    found = {}
    for line in read("constraints.txt").splitlines():
        name, equals, version = line.partition("==")
        assert equals and canonicalize_name(name) not in found, f"constraints.txt: {line!r} is no pin, or a second one"
        found[canonicalize_name(name)] = Version(version)
    return found


def make_variable(name: str) -> str:
    return re.search(rf"^(?:export )?{name} [?:]= (.*)$", read("Makefile"), re.MULTILINE)[1]


def torch_pin() -> Requirement:
    return Requirement(re.match(r"torch==[\d.]+", make_variable("TORCH"))[0])


# --- dependencies and environments --------------------------------------------------------------------------------


def test_every_dependency_is_pinned_within_its_bounds():
    for name, allowed in bounds().items():
        version = Version(next(iter(torch_pin().specifier)).version) if name == "torch" else pins().get(name)
        assert version is not None, f"{name} has no pin in constraints.txt"
        assert version in allowed, f"{name} {version} is outside {allowed}"


def test_constraints_leave_to_torch_what_is_torchs():
    own = [name for name in pins() if TORCHS_OWN.match(name)]
    assert not own, f"{own}: each build of torch brings its own; a pin makes all other builds impossible to install"


def conda() -> dict:
    return yaml.safe_load(read("environment.yml"))


def test_conda_channels_are_a_list_of_names():
    channels = conda()["channels"]
    assert isinstance(channels, list) and channels and all(re.fullmatch(r"[\w-]+", c) for c in channels)


def test_conda_python_is_that_of_the_package():
    wanted = [line for line in conda()["dependencies"] if isinstance(line, str) and line.startswith("python")]
    specifier = SpecifierSet(wanted[0].removeprefix("python"))
    oldest = SpecifierSet(project()["requires-python"])
    assert str(oldest) in map(str, specifier)
    assert [f"3.{m}" for m in range(15) if f"3.{m}" in specifier] == ["3.11", "3.12", "3.13"]


def test_conda_pip_part_says_nothing_but_what_pyproject_and_makefile_say():
    (pip,) = [part["pip"] for part in conda()["dependencies"] if isinstance(part, dict)]
    assert "-c constraints.txt" in pip and "-e .[test]" in pip
    for line in pip:
        if line.startswith("-"):
            assert line in ("-c constraints.txt", "-e .[test]")
            continue
        asked = Requirement(line)
        assert canonicalize_name(asked.name) in bounds(), f"{line}: pyproject.toml does not know {asked.name}"
        assert asked.name == "torch" and asked == torch_pin(), f"{line}: the bounds in pyproject.toml suffice"
    comment = f"pip install {torch_pin()} --index-url"
    assert comment in read("environment.yml"), "the ROCm steps in the comment name another torch"


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


def test_image_runs_as_a_plain_user():
    number = dict(rest.split("=", 1) for rest in instructions("ARG") if "=" in rest)["USER_ID"]
    assert instructions("USER")[-1] == "${USER_ID}" and int(number) >= 1000


def test_image_gives_nothing_away():
    text = read("Dockerfile.rocm")
    assert "privileged" not in text and "unconfined" not in text and "allow_root" not in text.replace("-", "_")
    assert not re.search(r"(token|password)\s*=", text, re.IGNORECASE), "a token is set, or emptied, in the image"
    assert not re.search(r"allow_origin|disable_check_xsrf", text)


def test_image_keeps_the_torch_of_its_base():
    kept = "pip list --format=freeze | grep -E '^(torch|triton|pytorch)'"
    (step,) = [run for run in instructions("RUN") if "pip install" in run]
    before, _, after = step.partition("pip install")
    assert f"{kept} > .venv/torch.txt" in before
    assert "-c constraints.txt -c .venv/torch.txt -e '.[test]'" in after
    assert f"{kept} | cmp - .venv/torch.txt" in after


def test_image_has_init_health_check_volume_and_labels():
    assert instructions("ENTRYPOINT") == ['["tini", "--"]']
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


# --- the README ---------------------------------------------------------------------------------------------------


def tree() -> dict[str, list[str]]:
    """The tree in the README: each name at the top, with the names listed below it."""
    block = re.search(r"^## The tree\n+```text\n(.*?)```", read("README.md"), re.DOTALL | re.MULTILINE)[1]
    found: dict[str, list[str]] = {}
    for line in block.splitlines():
        name, phrase = line.strip().split(None, 1)
        assert phrase, f"{name} has no phrase"
        if line.startswith(" "):
            found[list(found)[-1]].append(name)
        else:
            found[name] = []
    return found


def test_the_tree_in_the_readme_is_the_tree():
    there = {name.split("/")[0] + "/" * ("/" in name) for name in tracked()}
    assert set(tree()) == there, "the top of the tree in README.md and what git holds differ"
    for folder, children in tree().items():
        if children:
            held = {Path(name).name for name in tracked() if str(Path(name).parent) == folder.rstrip("/")}
            assert set(children) == held, f"{folder} in README.md and in git differ"


def test_links_in_the_readme_lead_somewhere():
    text = read("README.md")
    headings = {
        re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)
    }
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in headings, f"no heading {target}"
        elif not re.match(r"https?://", target):
            assert target.partition("#")[0] in tracked(), f"{target} is not a file that git holds"


def test_the_readme_names_what_the_code_has():
    from helpers.settings import PROFILES

    text = read("README.md")
    rows = set(re.findall(r"^\| `([\w-]+)` \|", text.partition("## Profiles")[2].partition("\n## ")[0], re.M))
    assert rows == set(PROFILES)
    targets = set(re.findall(r"^([a-z][\w-]*):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)[`\s]", text)) <= targets
    assert f"pip install {torch_pin()} " in text


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


def test_no_code_of_a_hub_and_no_pickle_is_ever_loaded():
    for name, text in texts().items():
        if name.startswith(("helpers/", "notebooks/")):
            assert not (found := FORBIDDEN.search(text)), f"{name}: {found[0]}"
