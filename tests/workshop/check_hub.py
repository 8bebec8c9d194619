"""The workshop's JupyterHub, really started, with two people in it: `make hub-check`."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

from helpers.settings import ROOT

import psutil
import pytest
import requests
from websocket import create_connection

CONFIG = ROOT / "docs/workshop/jupyterhub_config.py"
PASSWORD = "a password for the test"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A running hub with two GPUs' worth of seats; its address, its process, its folder and its log."""
    pytest.importorskip("jupyterhub", reason="JupyterHub is not installed: make hub-check")
    if not shutil.which("configurable-http-proxy"):
        pytest.skip("configurable-http-proxy is not on PATH: make hub-check installs it with npm")
    folder, port = tmp_path_factory.mktemp("hub"), free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "WORKSHOP_PASSWORD": PASSWORD, "WORKSHOP_FOLDER": str(folder), "WORKSHOP_URL": url, "WORKSHOP_GPUS": "4,5",
        "WORKSHOP_SEATS": "2", "WORKSHOP_SEAT_GB": "6", "WORKSHOP_IDLE_MINUTES": "0.5", "CONFIGPROXY_AUTH_TOKEN": uuid.uuid4().hex,
    }  # fmt: skip
    command = [sys.executable, "-m", "jupyterhub", "-f", str(CONFIG), f"--JupyterHub.hub_port={free_port()}"]
    command.append(f"--ConfigurableHTTPProxy.api_url=http://127.0.0.1:{free_port()}")
    if os.geteuid() == 0:
        command.append("--Spawner.args=['--allow-root']")
    with open(folder / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(120):
            if "JupyterHub is now running" in (folder / "log").read_text():
                break
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.5)
        yield url, process, folder
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.wait(timeout=60)
        for child in psutil.wait_procs(children, timeout=10)[1]:
            child.kill()


class Person:
    """Somebody at a seat: logged in, server started, one kernel."""

    def __init__(self, url: str, name: str, password: str = PASSWORD):
        self.url, self.name, self.session = url, name, requests.Session()
        page = self.session.get(f"{url}/hub/login").text
        token = re.search(r'name="_xsrf"\s+value="([^"]+)"', page)[1]
        self.login = self.session.post(
            f"{url}/hub/login", data={"username": name, "password": password, "_xsrf": token}, allow_redirects=False
        )

    def start(self) -> int:
        """Ask for a server; the status of the answer, 200 once it runs."""
        for _ in range(90):
            answer = self.session.get(f"{self.url}/hub/spawn", timeout=60)
            if answer.status_code != 200 or f"/user/{self.name}/lab" in answer.url:
                return answer.status_code
            time.sleep(1)
        raise AssertionError(f"{self.name} got no server")

    def call(self, method: str, path: str, **more):
        headers = {
            "X-XSRFToken": next(
                (c.value for c in self.session.cookies if c.name == "_xsrf" and self.name in c.path), ""
            )
        }
        return self.session.request(
            method, f"{self.url}/user/{self.name}/api/{path}", headers=headers, timeout=60, **more
        )

    def run(self, code: str) -> str:
        """What the code prints in a new kernel of this seat."""
        kernel = self.call("POST", "kernels", json={"path": "notebooks/00_setup_check.ipynb"}).json()["id"]
        cookies = "; ".join(
            f"{c.name}={c.value}" for c in self.session.cookies if c.path in ("/", f"/user/{self.name}/")
        )
        address = f"{self.url.replace('http', 'ws')}/user/{self.name}/api/kernels/{kernel}/channels"
        channel = create_connection(address, cookie=cookies, timeout=60)
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": "execute_request",
            "username": "",
            "session": kernel,
            "version": "5.3",
        }
        channel.send(
            json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"})
        )
        said = ""
        while True:
            message = json.loads(channel.recv())
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            if message["msg_type"] == "stream":
                said += message["content"]["text"]
            if message["msg_type"] == "error":
                said += message["content"]["ename"]
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                channel.close()
                return said


SEAT = """
import json, os, resource, helpers.settings
print(json.dumps({"gpu": [os.environ["HIP_VISIBLE_DEVICES"], os.environ["CUDA_VISIBLE_DEVICES"]], "pid": os.getpid(),
    "cores": sorted(os.sched_getaffinity(0)), "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
    "root": str(helpers.settings.ROOT), "cwd": os.getcwd(), "password": "WORKSHOP_PASSWORD" in os.environ,
    "rocr": "ROCR_VISIBLE_DEVICES" in os.environ}))
"""


def test_two_people_have_seats_of_their_own_with_limits_and_a_third_is_asked_to_wait(hub):
    url, _, folder = hub
    assert Person(url, "eve", "a wrong password").login.status_code == 403
    ada, ben = Person(url, "ada"), Person(url, "ben")
    assert ada.start() == ben.start() == 200
    first, second = json.loads(ada.run(SEAT)), json.loads(ben.run(SEAT))
    assert first["gpu"] == ["4", "4"] and second["gpu"] == ["5", "5"] and not first["rocr"]
    assert first["pid"] != second["pid"] and first["data"] == second["data"] == 6e9
    assert len(first["cores"]) == max(1, psutil.cpu_count() // 2)
    assert psutil.cpu_count() < 2 or not set(first["cores"]) & set(second["cores"])
    assert first["root"] == str(folder / "seats/ada") and second["cwd"] == str(folder / "seats/ben/notebooks")
    assert not first["password"], "the shared password reaches the seats"
    assert "MemoryError" in ada.run("b = bytearray(8 * 10**9)"), "a seat can take more memory than its share"
    assert ben.session.get(f"{url}/user/ada/api/kernels", timeout=60).status_code in (403, 404)
    assert (
        requests.get(f"{url}/user/ada/api/kernels", timeout=60).status_code in (302, 403)
        or "login" in requests.get(f"{url}/user/ada/api/kernels", timeout=60).url
    )
    assert Person(url, "cem").start() == 429, "more servers than seats"


def test_an_idle_seat_is_freed_and_its_files_stay(hub):
    url, process, folder = hub

    def seats() -> list[str]:
        found = []
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                found.append(" ".join(child.cmdline()))
            except psutil.Error:  # it ended in the meantime
                continue
        return [line for line in found if "jupyterhub-singleuser" in line]

    for _ in range(120):
        if not seats():
            break
        time.sleep(1)
    assert not seats()
    assert (folder / "seats/ada/notebooks/00_setup_check.ipynb").is_file()


def test_the_login_page_says_what_to_type_and_refuses_names_of_files(hub):
    url, _, folder = hub
    page = requests.get(f"{url}/hub/login", timeout=60).text
    assert "Username: your first name" in page and "Password: the one on the board" in page
    for name in ("hub.sqlite", "../ada", "cookie_secret"):
        assert Person(url, name).login.status_code == 403
    assert {p.name for p in folder.iterdir() if p.is_dir()} <= {"seats"}


def test_a_seat_is_the_committed_tree_without_solutions_news_or_own_results(hub):
    url, _, folder = hub
    seat = folder / "seats/ada"
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-tree", "-r", "--name-only", "HEAD", "notebooks"], capture_output=True, text=True
    )
    committed = {name for name in listed.stdout.split() if not name.startswith("notebooks/solutions")}
    there = {
        str(f.relative_to(seat))
        for f in (seat / "notebooks").rglob("*")
        if f.is_file() and ".ipynb_checkpoints" not in f.parts
    }
    assert there == committed and len(there) > 10
    for name in committed:
        assert (seat / name).read_bytes() == subprocess.run(
            ["git", "-C", ROOT, "show", f"HEAD:{name}"], capture_output=True
        ).stdout
    assert all((seat / own).is_dir() for own in ("my_data", "runs")) and not list((seat / "runs").iterdir())
    assert json.loads((seat / "docs/workshop/lab/overrides.json").read_text())[
        "@jupyterlab/apputils-extension:notification"
    ]


def refusal(argument: str = "", **environment: str) -> str:
    """What the hub prints when it does not start."""
    pytest.importorskip("jupyterhub")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WORKSHOP_")} | environment
    command = [sys.executable, "-m", "jupyterhub", "-f", str(CONFIG), *filter(None, [argument])]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60)
    assert done.returncode
    return done.stdout + done.stderr


def test_it_refuses_to_start_without_a_password_and_listens_on_this_machine_only():
    assert "set WORKSHOP_PASSWORD" in refusal("--Spawner.args=['--allow-root']")
    assert 'os.environ.get("WORKSHOP_URL", "http://127.0.0.1:8000")' in Path(CONFIG).read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="this account is not root")
def test_as_root_it_refuses_in_one_sentence():
    printed = refusal(WORKSHOP_PASSWORD=PASSWORD).strip()
    assert printed.startswith("error: the hub does not run as root") and "\n" not in printed
