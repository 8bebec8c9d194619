"""The files around the code agree with each other: dependencies, environments, README, what GitHub reads, what git holds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from check_environment import WITH_TORCH, blame, direct, locked
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
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


def torch_pin() -> Requirement:
    return Requirement(re.search(r"^TORCH_PIN := (.*)$", read("Makefile"), re.MULTILINE)[1])


# --- dependencies and environments --------------------------------------------------------------------------------


LOCKS = ("requirements.txt", "requirements-tools.txt")


def test_every_dependency_is_locked_within_its_bounds():
    for name, allowed in direct().items():
        pin = Version(next(iter(torch_pin().specifier)).version) if name == "torch" else locked(LOCKS[1]).get(name)
        assert pin is not None, f"requirements-tools.txt does not lock {name}: make lock"
        assert pin in allowed, f"{name} {pin} is outside {allowed}: make lock"


def test_the_locks_agree_and_hold_a_hash_for_every_package_and_no_address():
    small, every = map(locked, LOCKS)
    assert small.items() <= every.items(), "the two locks differ: make lock"
    for name in LOCKS:
        entries = re.split(r"\n(?=\S)", read(name).partition("make lock\n")[2].strip())
        assert len(entries) == len(locked(name)), f"{name}: a package has two pins"
        for entry in entries:
            assert re.match(r"[a-z0-9.-]+==[\w.]+( ; .*)? \\\n    --hash=sha256:[0-9a-f]{64}", entry), (
                f"{name}: {entry[:80]}"
            )
        assert "://" not in read(name)


def test_the_locks_leave_to_torch_what_comes_with_torch():
    found = [name for name in locked(LOCKS[1]) if WITH_TORCH.match(name)]
    assert not found, (
        f"{found}: each build of torch brings its own; a lock makes all other builds impossible to install"
    )


def test_conda_gives_python_and_leaves_the_packages_to_the_set_up():
    assert [line for line in conda()["dependencies"] if isinstance(line, str)] == conda()["dependencies"]
    assert 'make setup VENV="$CONDA_PREFIX"' in read("environment.yml")


def conda() -> dict:
    return yaml.safe_load(read("environment.yml"))


def test_conda_channels_are_a_list_of_names():
    channels = conda()["channels"]
    assert isinstance(channels, list) and channels and all(re.fullmatch(r"[\w-]+", c) for c in channels)


def test_conda_understands_its_lines():
    rattler = pytest.importorskip("rattler", reason="py-rattler is not here: make tools")
    for line in conda()["dependencies"]:
        rattler.MatchSpec(line)
    with pytest.raises(Exception, match="spec"):
        rattler.MatchSpec("python=>3.11")  # the parser does refuse what conda does not take


def test_conda_python_is_that_of_the_package():
    wanted = [line for line in conda()["dependencies"] if line.startswith("python")]
    specifier = SpecifierSet(wanted[0].removeprefix("python"))
    oldest = SpecifierSet(project()["requires-python"])
    assert str(oldest) in map(str, specifier)
    assert [f"3.{m}" for m in range(15) if f"3.{m}" in specifier] == ["3.11", "3.12", "3.13"]


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


def test_the_canary_names_the_package_that_broke(tmp_path, capsys):
    blame(OnePackageBreaks("peft"), tmp_path, ["trl", "peft", "datasets"])
    assert capsys.readouterr().out == f"peft 999 is what broke: with {locked()['peft']} all notebooks pass\n"
    blame(OnePackageBreaks("numpy"), tmp_path, ["trl", "peft", "datasets"])
    assert "no single direct package" in capsys.readouterr().out


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


# --- what GitHub reads ----------------------------------------------------------------------------------------------


def test_github_runs_what_ci_runs_on_the_supported_pythons():
    tests = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]["tests"]
    assert tests["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert [step["run"] for step in tests["steps"] if "run" in step] == ["bash .ci/run"]
    assert [line for line in read(".ci/run").splitlines() if line.startswith("make")] == [
        "make setup tools",
        "make lint",
        "make test",
    ]


@pytest.fixture(scope="module")
def linter():
    sys.modules.setdefault(
        "rfc3987_syntax", None
    )  # a grammar that takes seconds to build, for addresses: none is checked
    check = pytest.importorskip("check_jsonschema", reason="check-jsonschema is not here: make tools")

    def ends(schema: str, file: Path) -> int:
        with pytest.raises(SystemExit) as ended:
            check.main(["--quiet", "--builtin-schema", f"vendor.{schema}", str(file)])
        return ended.value.code

    return ends


@pytest.mark.parametrize(
    ("schema", "file"),
    [("github-workflows", f".github/workflows/{name}.yml") for name in ("tests", "site")]
    + [("github-issue-forms", f".github/ISSUE_TEMPLATE/{name}.yml") for name in ("amd-card", "problem", "idea")]
    + [("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"), ("citation-file-format", "CITATION.cff")],
)
def test_what_github_reads_has_the_form_it_asks_for(schema, file, tmp_path, linter):
    assert linter(schema, ROOT / file) == 0
    spoilt = tmp_path / "spoilt.yml"
    spoilt.write_text(read(file) + "\nunknown-key: {a: 1}\n")
    assert linter(schema, spoilt) == 1, "the linter sees no fault"


def test_forms_dev_container_hook_and_versions_agree_with_the_rest():
    assert "make report" in read(".github/ISSUE_TEMPLATE/amd-card.yml")
    assert json.loads(read(".devcontainer/devcontainer.json"))["postCreateCommand"] == "make setup"
    assert yaml.safe_load(read("CITATION.cff"))["version"] == project()["version"]
    assert f"## {project()['version']}" in read("CHANGELOG.md")
    (hook,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]["hooks"]
    assert hook["entry"] == "make lint"


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
