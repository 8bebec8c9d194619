"""Slow: the runner under many random parameters, and stopped at random moments until the series is through.

Measured on 2026-11-22 on one core of a busy CPU: twenty stops, then every notebook passed; the longest stop took 5.2 s
until no process was left.
"""

import json
import random
import signal
import subprocess
import sys
import time

from helpers.headless import find_notebooks
from helpers.headless.processes import FOLDER
from helpers.records import load_series
from helpers.settings import ROOT
from tests.headless.test_arguments import PARAMETERS, is_answered

import psutil
from hypothesis import given, settings

STOPS, SEED = 20, 1


@settings(max_examples=1000, database=None, deadline=None)
@given(PARAMETERS)
def test_a_thousand_random_parameters_are_answered(text):
    is_answered(text)


def left_over(folder) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(FOLDER) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_run_stopped_at_random_moments_ends_with_every_notebook_passed(tmp_path):
    """SIGINT, SIGTERM and SIGKILL to the runner; each time nothing is left running, and what had passed stays passed.

    The last attempt is left alone. Run it with -s to see each attempt.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts this with & has it ignored
    chance, folder = random.Random(SEED), tmp_path / "tiny"
    command = [sys.executable, "-m", "helpers.headless", "--profile", "tiny", "--runs-dir", str(tmp_path)]
    command += ["--params", "max_steps=4"]
    stops, passed, longest = [], set(), 0.0
    for attempt in range(STOPS + 1):
        began = time.monotonic()
        with open(tmp_path / "log.txt", "w") as log:
            runner = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[attempt % 3]
        try:
            runner.wait(timeout=None if attempt >= STOPS else chance.uniform(1, 30))
        except subprocess.TimeoutExpired:
            runner.send_signal(number)
            stopped = time.monotonic()
            runner.wait(timeout=60)
            while left_over(folder):
                assert time.monotonic() - stopped < 60, left_over(folder)
                time.sleep(0.1)
            longest = max(longest, time.monotonic() - stopped)
            # -number: before Python could handle it; 0: after the last notebook
            assert runner.returncode in ({-number} if number == signal.SIGKILL else {130, -number, 0})
            stops.append(number.name)
        log = (tmp_path / "log.txt").read_text()
        assert "Traceback" not in log or "\nKeyboardInterrupt" in log, log  # Python's own, while it imports
        if (folder / "status.json").is_file():
            status = json.loads((folder / "status.json").read_text())["notebooks"]
            now_passed = {name for name, entry in status.items() if entry["status"] == "ok"}
            assert passed <= now_passed
            passed = now_passed
        print(f"{attempt}: {time.monotonic() - began:.0f} s, exit {runner.returncode}, passed {sorted(passed)}")
        if runner.returncode == 0:
            break
    print(f"{len(stops)} stops ({', '.join(stops)}); the longest took {longest:.1f} s until no process was left")
    assert stops and passed == {p.stem for p in find_notebooks()}
    assert all(record.status == "ok" for record in load_series(folder))
