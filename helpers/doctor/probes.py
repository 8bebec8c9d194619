"""Running the trials of :mod:`helpers.doctor.trials` in processes of their own. Never imports torch.

A kernel that the driver cannot run may end the process or never return. So the doctor starts ``python -m
helpers.doctor.trials NAME...``, which prints one line of JSON for each trial, and goes on with the next one in a
new process if one dies or takes too long.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from queue import Empty, Queue

from helpers.settings import ROOT

NAMES = ("torch_sees", "bf16", "attention", "varlen", "four_bits", "triton", "speed", "packages")


def ask(names: Sequence[str], seconds: float = 60, environment: dict[str, str] | None = None) -> dict[str, dict]:
    """By trial its result, or {"failed": reason}; the first gets twice the seconds, for the import of torch."""
    found: dict[str, dict] = {}
    while left := [name for name in names if name not in found]:
        command = [sys.executable, "-W", "ignore", "-m", "helpers.doctor.trials", *left]
        complaints = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 the child writes while we read on
        files = {"stdout": subprocess.PIPE, "stderr": complaints, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen(command, **files, text=True, env=environment, cwd=ROOT, start_new_session=True)
        lines: Queue = Queue()
        threading.Thread(target=lambda p=process, q=lines: [*map(q.put, p.stdout), q.put("")], daemon=True).start()
        for order, name in enumerate(left):
            try:
                line = lines.get(timeout=seconds * (1 if order else 2))
            except Empty:
                os.killpg(process.pid, signal.SIGKILL)  # not waited for: the driver may hold it
                found[name] = {"failed": f"no answer within {seconds:g} s"}
                break
            if not line:
                found[name] = {"failed": _ending(process.wait(), complaints)}
                break
            found[name] = json.loads(line)
    return found


def _ending(code: int, complaints) -> str:
    """How a process ended, with the last error that it printed."""
    complaints.seek(0)
    errors = [line.strip() for line in complaints if "error" in line.lower()]
    cause = signal.Signals(-code).name if code < 0 else f"code {code}"
    return ": ".join([f"the process ended with {cause}", *(line[:160] for line in errors[-1:])])
