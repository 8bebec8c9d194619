"""Whatever may die or never return, since a driver has to answer: tools and trials in processes of their own. Never imports torch."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from helpers.settings import ROOT

NAMES = ("torch_sees", "bf16", "attention", "four_bits", "triton", "speed", "packages")


def within(seconds: float, function: Callable, *arguments):
    """The result of a function; TimeoutError after some seconds, and its thread is left behind."""
    future: Future = Future()

    def call() -> None:
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def run(command: list[str], seconds: float, **options) -> tuple[str, str, str]:
    """What a command printed, its errors, and how it ended: "" if well. It is killed after some seconds, not waited for."""
    files = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(command, **files, text=True, errors="replace", start_new_session=True, **options)
        printed, errors = process.communicate(timeout=seconds)
    except OSError as error:
        return "", "", f"could not be started ({error.strerror})"
    except subprocess.TimeoutExpired as late:
        os.killpg(process.pid, signal.SIGKILL)
        return (late.output or b"").decode(errors="replace"), "", f"gave no answer within {seconds:g} s"
    code = process.returncode
    cause = signal.Signals(-code).name if code < 0 else f"code {code}"
    return printed, errors, f"ended with {cause}" if code or not printed.strip() else ""


def complaints(text: str) -> list[str]:
    """The lines that speak of an error, without "ERROR:root:" before them."""
    lines = [line.strip().rstrip(".") for line in text.splitlines() if re.search("error|critical", line, re.IGNORECASE)]
    return [re.sub(r"^(ERROR|CRITICAL):(root:)?\s*", "", line) for line in lines]


def ask(names: Sequence[str] = NAMES, seconds: float = 90) -> dict[str, dict]:
    """By trial of :mod:`helpers.doctor.trials` its result, or {"failed": reason}.

    One process runs them all and prints a line of JSON for each. If it dies or takes too long, the next process goes
    on where it stopped; a trial that does not come to its end even as the first of a process has failed.
    """
    found: dict[str, dict] = {}
    while left := [name for name in names if name not in found]:
        command = [sys.executable, "-W", "ignore", "-m", "helpers.doctor.trials", *left]
        printed, errors, ending = run(command, seconds, cwd=ROOT)
        found |= {name: json.loads(line) for name, line in zip(left, printed.splitlines(), strict=False)}
        if not printed:
            reason = ": ".join([f"the process {ending}", *(line[:160] for line in complaints(errors)[-1:])])
            found[left[0]] = {"failed": reason}
    return found
