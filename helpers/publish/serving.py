"""Models behind an OpenAI-compatible server, reached from this machine only: started, waited for, and always stopped."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from helpers.engine.distributed import FOLLOW_PARENT
from helpers.headless.processes import end_processes
from helpers.settings import ROOT, Settings, shown
from helpers.sources import resolve

import psutil

HOST = "127.0.0.1"
PATIENCE = 600  # seconds until a model is loaded


class ServingError(RuntimeError):
    """A server that cannot start or did not answer; the message says why and what to do."""


def command(folder: Path, port: int, device: str = "cpu", attention: str = "sdpa") -> list[str]:
    """The command that starts the server, to be run in the parent of the model's folder."""
    options = {"--host": HOST, "--port": str(port), "--device": device, "--attn-implementation": attention}
    return ["transformers", "serve", folder.name, *(word for option in options.items() for word in option)]


def serving(
    folder: Path, port: int | None = None, device: str = "cpu", attention: str = "sdpa"
) -> AbstractContextManager[str]:
    """Serve a saved model while the block runs. The model's name for clients is the name of its folder.

    Args:
        folder: of a whole model with its tokenizer, such as a merged one.
        port: None takes any free one.

    Returns:
        For ``with``: the address for a client's ``base_url``, such as ``http://127.0.0.1:8000/v1``.

    Raises:
        ServingError: if the port is taken, or the server ends or stays silent.
    """
    folder, port = Path(folder).resolve(), _free(port)
    if not (folder / "config.json").is_file():
        raise ServingError(f"there is no model in {shown(folder)}: merge one first")
    arguments = command(folder, port, device, attention)[1:]
    return _running(["transformers.cli.transformers", *arguments], port, folder.parent)


def serving_adapters(settings: Settings, adapters: dict[str, Path], device: str = "cpu") -> AbstractContextManager[str]:
    """Serve several adapters on one base model while the block runs; a request chooses one by its ``model``.

    The base is loaded once, in bf16, and answers to the name "base" without an adapter. Requests take turns, since one
    adapter is active at a time.

    Args:
        settings: whose base model is served.
        adapters: the folder of each adapter by the name that clients use.

    Raises:
        ServingError: as for :func:`serving`, and for an adapter that cannot be loaded on this base.
    """
    if not adapters or "base" in adapters:
        raise ServingError('give at least one adapter, under another name than "base", which is the model without one')
    base, port = resolve(settings), _free(None)
    job = {"name": base.name, "folder": str(base.folder), "revision": base.revision, "device": device}
    job |= {"adapters": {name: str(folder) for name, folder in adapters.items()}}
    return _running(["helpers.publish.adapter_server", json.dumps(job), str(port)], port, ROOT)


@contextlib.contextmanager
def _running(module: list[str], port: int, cwd: Path) -> Iterator[str]:
    """Run a server, a module with its arguments, as a process of its own while the block runs, and yield its address."""
    for name in ("no_proxy", "NO_PROXY"):  # a proxy of the network cannot reach this machine's own server
        os.environ[name] = ",".join({*filter(None, os.environ.get(name, "").split(",")), HOST, "localhost"})
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    words = [sys.executable, "-c", FOLLOW_PARENT, sys.executable, "-m", *module]
    with tempfile.TemporaryFile() as log:
        options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        server = psutil.Popen(words, cwd=cwd, env=os.environ | offline, **options)
        try:
            _wait_until_ready(server, f"http://{HOST}:{port}/health", log)
            yield f"http://{HOST}:{port}/v1"
        finally:
            end_processes([server], patience=20)  # the server ends what it is doing and frees the model


def _free(port: int | None) -> int:
    """The wanted port, if nobody listens there, or any free one."""
    try:
        with socket.create_server((HOST, port or 0)) as probe:  # takes a port that was closed a moment ago, too
            return probe.getsockname()[1]
    except OSError:
        raise ServingError(
            f"port {port} is in use by another program: stop that, or choose a free port, such as {_free(None)}"
        ) from None


def _wait_until_ready(server: psutil.Popen, address: str, log) -> None:
    begun = time.monotonic()
    while server.poll() is None:
        if time.monotonic() > begun + PATIENCE:
            raise ServingError(
                f"the server did not answer within {PATIENCE} seconds: start it in a terminal to see why"
            )
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    log.seek(0)
    last = (log.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
    raise ServingError(f"the server ended with code {server.returncode} while starting: {last[:300]}")
