"""Build the image on a stand-in for its base, run it, and check what docs/container.md promises: ``make image-check``.

The stand-in is a bare Debian with a torch in /opt/venv, as AMD's images have one; with ``--base`` any image takes its place.
This shows that the instructions, the user, the port, the token, the health check and the notebooks work. It says nothing of
ROCm. Needs no container engine's service, no GPU and, to run the notebooks, no network. Last, the set-up of the dev container
runs in a bare Debian, as it does for a newcomer. The builds get the configuration that pip has on this machine.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from image_build import (
    IMAGE,
    LAB,
    ROOT,
    RUN,
    VOLUMES,
    CheckError,
    build,
    expect,
    make_newcomer,
    make_stand_in,
    need_tools,
    pip_configuration,
    podman,
    say,
    sh,
)

CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"]


# --- running ------------------------------------------------------------------------------------------------------


@contextmanager
def lab(port: int) -> Iterator[None]:
    """JupyterLab in the container, published on this machine only; the container and its volumes are removed after."""
    remove()
    try:
        podman("run", "-d", "--name", LAB, "-p", f"127.0.0.1:{port}:8888", *RUN, *VOLUMES, IMAGE)
        yield
    finally:
        remove()


def remove() -> None:
    sh("podman", "rm", "-f", "-v", LAB, ok=False)
    for name in VOLUMES[1::2]:
        sh("podman", "volume", "rm", "-f", name.partition(":")[0], ok=False)


def inside(*command: str) -> str:
    return podman("exec", LAB, *command)


def wait_until_healthy(limit: float = 120) -> None:
    started = time.monotonic()
    while sh("podman", "healthcheck", "run", LAB, ok=False).returncode:
        if podman("inspect", "-f", "{{.State.Running}}", LAB) != "true" or time.monotonic() - started > limit:
            raise CheckError(f"not healthy after {limit:.0f} s; the container says:\n{logs()}")
        time.sleep(1)
    say(f"ok  healthy after {time.monotonic() - started:.0f} s")


def logs() -> str:
    done = sh("podman", "logs", "--tail", "30", LAB, ok=False)
    return done.stdout + done.stderr


def answer(url: str, method: str = "GET") -> int:
    """The HTTP status of one request."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def own_address() -> str | None:
    """An address of this machine that is not 127.0.0.1, as others in its network would use; None without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a test address: UDP sends nothing here
        except OSError:
            return None
        return probe.getsockname()[0]


def open_port(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(3)
        return probe.connect_ex((address, port)) == 0


# --- the checks ---------------------------------------------------------------------------------------------------


def check_image(base: str) -> None:
    version = ("python3", "-c", "import torch; print(torch.__version__)")
    kept = [podman("run", "--rm", "--network", "none", *RUN, image, *version) for image in (base, IMAGE)]
    expect(kept[0] == kept[1], f"the torch of the base is kept: {kept[1]}")
    config = json.loads(sh("podman", "image", "inspect", IMAGE).stdout)[0]["Config"]
    labels = {name.rpartition(".")[2] for name in config["Labels"] if name.startswith("org.opencontainers.image.")}
    expect({"title", "description", "licenses"} <= labels, f"OCI labels: {', '.join(sorted(labels))}")


def check_user() -> None:
    user, groups, first = inside("id", "-u"), inside("id", "-G").split(), inside("cat", "/proc/1/comm")
    expect(user == "10001" and "992" in groups, f"runs as user {user}, groups {' '.join(groups)}, not as root")
    expect(first == "tini", f"process 1 is {first}")
    own = "import os; print(os.access('/series/.venv/bin', os.W_OK) or os.access('/etc', os.W_OK))"
    expect(inside("python3", "-c", own) == "False", "the user cannot change the environment or the system")


def check_access(port: int, token: str) -> None:
    kernels = f"http://127.0.0.1:{port}/api/kernels"
    refused = [answer(kernels), answer(kernels, "POST"), answer(f"{kernels}?token=wrong")]
    expect(refused == [403, 403, 403], f"without the token, listing and starting kernels is refused: {refused}")
    expect(answer(f"{kernels}?token={token}") == 200, "with the token it is allowed")
    outside = own_address()
    if outside is None:
        say("--  no network here, so the port was not tried from another address")
    else:
        expect(not open_port(outside, port), "the port is closed on the machine's other address")


def check_notebooks() -> None:
    """Through the runner, without a network, into the volumes of a container of its own."""
    started = time.monotonic()
    podman("run", "--rm", "--network", "none", "--no-healthcheck", *RUN, *VOLUMES, IMAGE,
           "make", "run-all", "PROFILE=tiny", "NOTEBOOKS=00 02")  # fmt: skip
    status = json.loads(inside("cat", "runs/tiny/status.json"))
    ended = {name: entry["status"] for name, entry in status["notebooks"].items()}
    took = time.monotonic() - started
    expect(len(ended) == 2 and set(ended.values()) == {"ok"}, f"make run-all without a network, {took:.0f} s: {ended}")


def check_browser(port: int, token: str, picture: Path) -> None:
    """Run 00 in JupyterLab as a reader does, save it, and read the saved file. Profile tiny needs no download."""
    from playwright.sync_api import sync_playwright

    inside("python3", "-m", "helpers.workshop", "lab", "--profile=tiny")
    name = "notebooks/00_setup_check.ipynb"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(400_000)
        page.goto(f"http://127.0.0.1:{port}/lab/tree/{name}?token={token}&reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
        page.wait_for_function("document.querySelector('#jp-main-statusbar').innerText.includes('Idle')")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(3000)
        page.wait_for_function(
            "![...document.querySelectorAll('.jp-InputPrompt')].some(p => p.innerText.includes('*'))"
        )
        page.keyboard.press("Control+s")
        page.wait_for_function("!document.querySelector('.jp-mod-dirty')")
        page.screenshot(path=picture)
        browser.close()
    cells = json.loads(inside("cat", name))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and cell["source"]]
    errors = [out["ename"] for cell in code for out in cell["outputs"] if out["output_type"] == "error"]
    expect(
        all(cell["execution_count"] for cell in code), f"{name} in JupyterLab: all {len(code)} cells ran and were saved"
    )
    expect(not errors, "none of them with an error" + f", but {errors}" * bool(errors))
    say(f"    picture: {picture}")


def check_stop() -> None:
    started = time.monotonic()
    podman("stop", "-t", "10", LAB)
    code = podman("inspect", "-f", "{{.State.ExitCode}}", LAB)
    expect(code != "137", f"stops by itself when asked, in {time.monotonic() - started:.1f} s, exit code {code}")


def check_running(port: int, picture: Path) -> None:
    """All that needs the container to run."""
    with lab(port):
        wait_until_healthy()
        token = re.search(r"token=(\w+)", inside("jupyter", "server", "list"))[1]
        check_user()
        check_access(port, token)
        check_notebooks()
        check_browser(port, token, picture)
        check_stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="an image to build on, instead of the stand-in")
    parser.add_argument("--torch", default="torch", help="what pip installs into the stand-in")
    parser.add_argument("--mount", action="append", default=[], metavar="HOST:INSIDE:ro",
                        help="for the builds, such as certificates that your network needs; repeatable")  # fmt: skip
    parser.add_argument("--port", type=int, default=8899)
    chosen = parser.parse_args()
    if not chosen.torch.startswith("torch"):
        parser.error(f"--torch {chosen.torch!r}: give what pip installs, such as torch==2.13.0")
    picture = ROOT / "runs" / "image-check.png"
    picture.parent.mkdir(exist_ok=True)
    try:
        need_tools()
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)  # the user of a build reads it
            mounts = [*chosen.mount, *pip_configuration(Path(folder))]
            base = chosen.base or make_stand_in(chosen.torch, mounts)
            build(IMAGE, mounts, f"BASE_IMAGE={base}", "-f", str(ROOT / "Dockerfile.rocm"), str(ROOT))
            check_image(base)
            check_running(chosen.port, picture)
            if not chosen.base:
                make_newcomer(mounts)
    except CheckError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say("the image keeps its promises; nothing here was run on ROCm")
    return 0


if __name__ == "__main__":
    sys.exit(main())
