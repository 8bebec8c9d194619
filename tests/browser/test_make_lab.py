"""What `make lab` opens: the first notebook with the chosen profile, results and own rows within reach, no wide code."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from helpers.settings import ROOT

import pytest


@pytest.fixture
def lab(tmp_path):
    """The address that `make lab PROFILE=tiny` prints, in a copy of what is committed."""
    committed = subprocess.run(["git", "-C", ROOT, "archive", "HEAD"], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", tmp_path], input=committed, check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = f"--no-browser --port={port}" + " --allow-root" * (os.geteuid() == 0)
    command = [
        "make",
        "-o",
        f"{sys.prefix}/.ready",
        "lab",
        f"VENV={sys.prefix}",
        "PROFILE=tiny",
        f"LAB_ARGS={arguments}",
    ]
    environment = os.environ | {"JUPYTER_TOKEN": "token-of-the-test", "PYTHONPATH": str(tmp_path)}
    environment["JUPYTERLAB_WORKSPACES_DIR"] = str(
        tmp_path / "workspaces"
    )  # JupyterLab opens the tabs of last time as well
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    for _ in range(240):
        assert process.poll() is None, "make lab ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5)
            break
        except OSError:
            time.sleep(0.5)
    yield f"http://127.0.0.1:{port}/?token=token-of-the-test"
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=30)


def test_it_opens_the_first_notebook_with_the_profile_and_code_fits(chromium, lab, pictures):
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(120_000)
    page.goto(lab)
    page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
    page.wait_for_function("document.querySelector('#jp-main-statusbar')?.innerText.includes('| Idle')")
    assert (
        page.locator("#jp-main-dock-panel .lm-TabBar-tab.lm-mod-current").first.inner_text().strip()
        == "00_setup_check.ipynb"
    )
    assert page.locator(".jp-CodeCell", has_text=re.compile('profile = "tiny"')).count() == 1
    page.screenshot(path=pictures / "make-lab.png")
    assert page.locator("text=Would you like to").count() == 0, "a question about news"
    wide = "[...document.querySelectorAll('.jp-CodeCell .cm-scroller')].filter(c => c.scrollWidth > c.clientWidth + 1).length"
    assert page.evaluate(wide) == 0, "code is wider than its cell"
    page.click(".jp-FileBrowser .jp-BreadCrumbs-home")
    page.wait_for_selector(".jp-DirListing-item >> text=my_data")
    names = page.locator(".jp-DirListing-itemText").all_inner_texts()
    assert {"runs", "my_data", "notebooks"} <= set(names)
    page.close()
