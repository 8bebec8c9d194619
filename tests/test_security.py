"""What keeps a reader's machine and secrets safe: one test for each promise, most of them about the files themselves."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

from helpers import plotting, records
from helpers.headless import find_notebooks, mask_secrets, parameters_of, secret_name
from helpers.settings import PROFILES, ROOT, settings_for

import nbformat
import pandas
import psutil
import pytest
from check_environment import WITH_TORCH, locked
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_image import instructions
from test_packaging import project, read, texts

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="checks of the repository, not of an image")
HOSTILE = "<script>alert(1)</script>"


def product() -> dict[str, str]:
    """The tracked text files that a reader runs or reads: all but the tests."""
    return {name: text for name, text in texts().items() if not name.startswith("tests/")}


# training data that talks about such words, because people ask about them, and records that quote the replies
PROSE = ("helpers/sources/conversations.md", "helpers/reference/")


def places(pattern: str) -> list[str]:
    """Where the product holds a pattern: file and matching text."""
    return [f"{name}: {m[0]}" for name, text in product().items() for m in re.finditer(pattern, text)]


# --- JupyterLab, really started -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """`make lab`, started in a folder of its own: what the running server says of itself, and its process."""
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"JUPYTER_CONFIG_DIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder), "HOME": str(folder)}
    root = " --allow-root" if os.geteuid() == 0 else ""
    process = subprocess.Popen(
        ["make", "-o", f"{sys.prefix}/.ready", "lab", f"VENV={sys.prefix}", f"LAB_ARGS=--no-browser --port={port}{root}"],
        cwd=ROOT, env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while not (told := list(folder.glob("jpserver-*.json"))) or not answers(port):
            assert process.poll() is None and time.monotonic() < deadline, "make lab did not start"
            time.sleep(0.2)
        yield json.loads(told[0].read_text()) | {"origin": f"http://127.0.0.1:{port}"}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, dict]:
    """Status and headers of the answer to a GET, or to a POST of ``data``."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)


def test_the_lab_asks_nobody_about_news(lab):
    name = "@jupyterlab/apputils-extension:notification"
    with urllib.request.urlopen(f"{lab['origin']}/lab/api/settings/{name}?token={lab['token']}", timeout=30) as answer:
        chosen = json.load(answer)["schema"]["properties"]
    assert chosen["fetchNews"]["default"] == "false" and chosen["checkForUpdates"]["default"] is False


def test_jupyter_token_stays_on(lab):
    assert len(lab["token"]) >= 32
    assert ask(f"{lab['origin']}/api/kernels", b"{}")[0] == 403, "an anonymous client must not start a kernel"
    assert ask(f"{lab['origin']}/api/contents")[0] == 403
    assert ask(f"{lab['origin']}/api/contents", Authorization=f"token {lab['token']}")[0] == 200
    assert places(r"IdentityProvider\.token|ServerApp\.(token|password)|--(NotebookApp|LabApp)\.token") == []


def test_jupyter_listens_on_this_machine_only(lab):
    server = psutil.Process(lab["pid"])
    bound = {c.laddr.ip for c in server.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert bound == {"127.0.0.1"}


def test_jupyter_origin_and_xsrf_checks_stay_on(lab):
    cookie = ask(f"{lab['origin']}/lab?token={lab['token']}")[1]["Set-Cookie"].split(";")[0]
    assert ask(f"{lab['origin']}/api/contents", Cookie=cookie)[0] == 200, "the cookie signs in"
    status, headers = ask(f"{lab['origin']}/api/contents", Cookie=cookie, Origin="http://elsewhere.example")
    assert status in (403, 404) and "Access-Control-Allow-Origin" not in headers, "but not a page from elsewhere"
    assert ask(f"{lab['origin']}/api/kernels", b"{}", Cookie=cookie)[0] == 403, "nor without the XSRF token"
    assert places(r"allow_origin|disable_check_xsrf|allow_remote_access") == []


# --- the image ----------------------------------------------------------------------------------------------------


def test_container_user_is_not_root_and_the_render_group_is_a_number():
    arguments = dict(rest.split("=", 1) for rest in instructions("ARG") if "=" in rest)
    assert instructions("USER")[-1] == "${USER_ID}" and int(arguments["USER_ID"]) >= 1000
    assert int(arguments["RENDER_GID"]) > 0
    text = read("Dockerfile.rocm")
    assert "allow_root" not in text.replace("-", "_") and not re.search(r"(token|password)\s*=", text, re.IGNORECASE)


RISKY = (
    r"--privileged|--network[ =]host|--net[ =]host|SYS_PTRACE|seccomp[=:]unconfined|--ipc[ =]host|-v /:|docker\.sock"
)


def test_gpu_flags_are_no_more_than_needed():
    """The commands themselves are checked in test_packaging.py; here, that nothing else advises more."""
    risky = {
        f"{name}: {p[:60]}": p for name, text in product().items() for p in text.split("\n\n") if re.search(RISKY, p)
    }
    assert risky, "the table that says what not to copy is gone"
    assert [where for where, p in risky.items() if not p.startswith("| option | what it gives away |")] == []


def test_init_reaps_children():
    assert instructions("ENTRYPOINT") == ['["tini", "--"]']


# --- secrets ------------------------------------------------------------------------------------------------------


def test_hub_tokens_are_never_an_argument():
    assert places(r"hub_token|\btoken\s*=\s*[\"']|use_auth_token|(?<!auth )\blogin\(") == []
    for notebook in find_notebooks():
        assert not [name for name in parameters_of(notebook) if secret_name(name) and name != "max_new_tokens"], (
            notebook
        )


def test_environment_is_recorded_by_an_allow_list(monkeypatch, tmp_path):
    monkeypatch.setenv("CANARY", "a-value-of-the-environment")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "a-word-of-the-command-line"])
    text = records.begin(settings_for("tiny")).save(tmp_path).read_text()
    for private in ("a-value-of-the-environment", "a-word-of-the-command-line", str(Path.home())):
        assert private not in text
    assert set(json.loads(text)["environment"]) == {"python", "platform", *records._PACKAGES}
    assert places(r"(print|dict|str|repr|dumps|list)\(os\.environ\)|os\.environ\.copy|\bprintenv\b") == []


def test_committed_records_and_notebooks_hold_no_secret_and_no_home():
    for name, text in product().items():
        assert mask_secrets(text) == text, name
        if name.startswith("helpers/reference"):
            assert not re.search(r'"/(?!/)\w+/|/home/|/Users/', text), name


def test_committed_notebooks_hold_no_outputs():
    notebooks = [name for name in product() if name.endswith(".ipynb")]
    assert notebooks
    for name in notebooks:
        for cell in nbformat.read(ROOT / name, 4).cells:
            assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None), name
            assert not cell.get("attachments"), name


# --- models and what they write -----------------------------------------------------------------------------------


def test_no_code_from_a_hub():
    found = places(r"trust_remote_code\s*[=:]\s*(?!False)\w+|\"trust_remote_code\"")
    assert [place for place in found if not place.startswith(PROSE)] == []


def test_weights_are_safetensors_only():
    found = places(r"weights_only\s*=\s*False|\btorch\.load\b|\bpickle\.load|safe_serialization\s*=\s*False")
    assert [place for place in found if not place.startswith(PROSE)] == []


# No revision is known for this one: no hub could be reached where the profiles were written.
UNPINNED = {"mlabonne/guanaco-llama2-1k"}


def test_hub_revisions_are_pinned():
    named = {}
    for chosen in map(settings_for, PROFILES):
        named |= {chosen.model: chosen.revision, chosen.data: chosen.data_revision}
    ids = {source for source in named if "/" in source}
    assert ids > UNPINNED
    for source in ids - UNPINNED:
        assert re.fullmatch(r"[0-9a-f]{40}", named[source] or ""), source


def test_notebooks_show_model_output_escaped():
    assert places(r"\bescape\s*=\s*False") == []
    written = pandas.DataFrame({"answer": [HOSTILE]})
    for shown in (
        plotting.texts(written).to_html(),
        plotting.token_strip([HOSTILE], [True]).data,
        plotting.token_heat([HOSTILE], [0.1]).data,
        plotting.passed([{"name": HOSTILE, "detail": ""}]).data,
    ):
        assert HOSTILE not in shown and "&lt;" in shown


# --- packages -----------------------------------------------------------------------------------------------------


def test_the_lock_has_every_package():
    """Whatever the project asks for, directly or through another package, has one pinned version, and it is installed."""
    wanted = [*map(Requirement, project()["dependencies"] + project()["optional-dependencies"]["test"])]
    pinned, seen = locked(), set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        if WITH_TORCH.match(name) or (name, *requirement.extras) in seen:
            continue
        seen.add((name, *requirement.extras))
        assert name in pinned, f"requirements.txt has no pin for {requirement}"
        assert metadata.version(name) == str(pinned[name]), name
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in ["", *requirement.extras]):
                wanted.append(needed)


def test_pip_check_is_clean():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    broken = [line for line in done.stdout.splitlines() if canonicalize_name(line.split()[0]) in locked()]
    assert not broken, broken
