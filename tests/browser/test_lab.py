"""The core notebooks in JupyterLab, as a learner runs them: opened, run, looked at, restarted and run again."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

from helpers.headless import find_notebooks
from helpers.settings import ROOT

import nbformat
import pytest

CORE = find_notebooks()[:6]
DONE = """() => document.querySelector('#jp-main-statusbar')?.innerText.includes('| Idle')
    && ![...document.querySelectorAll('.jp-InputPrompt')].some(prompt => prompt.innerText.includes('*'))"""


@dataclass
class Lab:
    folder: Path
    url: str
    token: str

    def open(self, page, notebook: str):
        page.goto(f"{self.url}/lab/tree/{notebook}?token={self.token}&reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell", timeout=120_000)
        page.wait_for_function(DONE, timeout=120_000)

    def saved(self, page, notebook: str) -> list:
        """The code cells of the notebook, after saving it."""
        before = (self.folder / notebook).stat().st_mtime_ns
        page.keyboard.press("Control+s")
        for _ in range(100):
            time.sleep(0.2)
            if (self.folder / notebook).stat().st_mtime_ns != before:
                try:
                    return [c for c in nbformat.read(self.folder / notebook, 4).cells if c.cell_type == "code"]
                except nbformat.reader.NotJSONError:  # half written
                    continue
        raise AssertionError(f"{notebook} was not saved")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab over a copy of the notebooks whose parameters cell says `tiny`."""
    folder, settings = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("settings")
    for notebook in CORE:
        content = nbformat.read(notebook, 4)
        for cell in content.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = re.sub(r'^profile = "small"', 'profile = "tiny"', cell.source, flags=re.MULTILINE)
                cell.source = re.sub(
                    r'^runs_dir = "runs"', f"runs_dir = {str(folder / 'runs')!r}", cell.source, flags=re.MULTILINE
                )
        nbformat.write(content, folder / notebook.name)
    plugin = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(json.dumps({"windowingMode": "none"}))  # keep cells in the page that are out of sight
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = uuid.uuid4().hex
    environment = os.environ | {
        "JUPYTER_TOKEN": token,
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--port-retries=0",
    ]
    command += [f"--notebook-dir={folder}", *(["--allow-root"] if os.geteuid() == 0 else [])]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(240):
        assert process.poll() is None, "JupyterLab ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5)
            break
        except OSError:
            time.sleep(0.5)
    yield Lab(folder, f"http://127.0.0.1:{port}", token)
    process.terminate()
    process.wait(timeout=30)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def page(chromium, lab):
    page = chromium.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(120_000)
    yield page
    page.close()


def check(cells: list, notebook: str) -> None:
    """Every cell ran, in order from 1, and none failed."""
    errors = [f"{o.ename}: {o.evalue}" for c in cells for o in c.outputs if o.output_type == "error"]
    assert not errors, f"{notebook}: {errors}"
    assert [c.execution_count for c in cells if c.source.strip()] == list(range(1, len(cells) + 1)), notebook


@pytest.mark.parametrize("notebook", [n.name for n in CORE])
def test_run_all_cells(lab, page, pictures, notebook):
    """Needs the notebooks before it, as the series does."""
    lab.open(page, notebook)
    page.click("#jp-MainMenu >> text=Run")
    page.click("text=Run All Cells >> nth=0")
    page.wait_for_timeout(2000)
    page.wait_for_function(DONE, timeout=400_000)
    cells = lab.saved(page, notebook)
    check(cells, notebook)
    expected = sum("image/png" in o.get("data", {}) for c in cells for o in c.outputs)
    figures = page.locator(".jp-OutputArea img[alt]:not([alt=''])")
    assert figures.count() == expected and (expected or notebook.startswith("05"))
    for number in range(expected):
        figures.nth(number).scroll_into_view_if_needed()
        box = figures.nth(number).bounding_box()
        assert box["width"] > 200 and box["height"] > 50
        page.screenshot(path=pictures / f"{notebook}-{number}.png")
    if "train" in notebook:
        bar = page.locator(".jp-OutputArea pre", has_text=re.compile(r"100%.*40/40"))
        bar.first.scroll_into_view_if_needed()
        assert bar.first.is_visible()
        page.screenshot(path=pictures / f"{notebook}-progress.png")


def test_an_exercise_says_what_is_wrong_and_then_that_it_is_right(lab, page, pictures):
    """In the kernel that ran the notebook above: typed into the cell, as a learner does."""
    notebook = CORE[0].name
    lab.open(page, notebook)
    cell = page.locator(".jp-CodeCell", has_text="exercises.bytes_kept(plain, momentum)")
    assert "Not answered yet: give a number for plain" in cell.inner_text()
    for plain, verdict in ((4, "Not yet: plain: 4 bytes are missing"), (8, "Right: weight and gradient")):
        cell.locator(".cm-content").click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(
            "from helpers.exercises import machine as exercises\n\n"
            f"plain = {plain}\nmomentum = 12\n\nexercises.bytes_kept(plain, momentum)"
        )
        page.keyboard.press("Control+Enter")
        cell.locator(".jp-OutputArea", has_text=verdict).wait_for()
        page.screenshot(path=pictures / f"{notebook}-exercise-{plain}.png")


def test_restart_and_run_again(lab, page):
    notebook = CORE[1].name
    lab.open(page, notebook)
    page.click("#jp-MainMenu >> text=Kernel")
    page.click("text=Restart Kernel and Run All Cells…")
    page.click(".jp-Dialog button:has-text('Restart')")
    page.wait_for_timeout(3000)
    page.wait_for_function(DONE, timeout=400_000)
    check(lab.saved(page, notebook), notebook)
