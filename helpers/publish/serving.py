"""Models behind an OpenAI-compatible server on this machine: started, waited for, and always stopped.

The server is `transformers serve`, or its handlers over several adapters (:mod:`helpers.publish.adapter_server`). It listens
on 127.0.0.1 only, so nobody but this machine reaches it.
"""

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
from helpers.settings import ROOT, Settings, shown
from helpers.sources import resolve

HOST = "127.0.0.1"


class ServingError(RuntimeError):
    """A server that cannot start or did not answer; the message says why and what to do."""


def command(folder: Path, port: int, device: str = "cpu", attention: str = "sdpa") -> list[str]:
    """The command that starts the server, to be run in the parent of the model's folder."""
    options = {"--host": HOST, "--port": str(port), "--device": device, "--attn-implementation": attention}
    return ["transformers", "serve", folder.name, *(word for option in options.items() for word in option)]


def vllm_command(settings: Settings, merged: bool) -> str:
    """The command that serves a run with vLLM in a container for ROCm, written from documentation and never run here.

    Served is the folder ``merged`` of the series, or the base with the run's adapter beside it.
    """
    base, mount = settings.model, '-v "$HOME/.cache/huggingface:/root/.cache/huggingface" '
    if "/" not in base or (ROOT / Path(base).expanduser()).is_dir():
        base, mount = "/base", f'-v "{resolve(settings).folder}:/base:ro" '
    rank = max(8, 1 << (settings.rank - 1).bit_length())  # vLLM takes powers of two
    adapter = f"--enable-lora --max-lora-rank {rank} --lora-modules answers=/series/{settings.folder.name}/adapter"
    model = "/series/merged --served-model-name merged" if merged else f"{base} {adapter}"
    return (
        "docker run --rm --entrypoint vllm --device /dev/kfd --device /dev/dri/renderD128 \\\n"
        '  --group-add "$(stat -c %g /dev/kfd)" --group-add "$(stat -c %g /dev/dri/renderD128)" \\\n'
        f'  -p {HOST}:8000:8000 -v "$PWD/{os.path.relpath(settings.series_folder, ROOT)}:/series:ro" '
        f"{'' if merged else mount}\\\n  IMAGE serve {model} \\\n"
        f"  --dtype bfloat16 --max-model-len {2 * max(settings.max_length, settings.max_new_tokens)}"
    )


def serving(
    folder: Path, port: int | None = None, device: str = "cpu", attention: str = "sdpa", patience: float = 300
) -> AbstractContextManager[str]:
    """Serve a saved model while the block runs. The model's name for clients is the name of its folder.

    Args:
        folder: of a whole model with its tokenizer, such as a merged one.
        port: None takes any free one.
        patience: seconds to wait until the model is loaded and the server reports that it is ready.

    Returns:
        For ``with``: the address for a client's ``base_url``, such as ``http://127.0.0.1:8000/v1``.

    Raises:
        ServingError: if the port is taken, or the server ends or stays silent.
    """
    folder, port = Path(folder).resolve(), _free(port)
    if not (folder / "config.json").is_file():
        raise ServingError(f"there is no model in {shown(folder)}: merge one first")
    arguments = command(folder, port, device, attention)[1:]
    return _running(["transformers.cli.transformers", *arguments], port, patience, folder.parent)


def serving_adapters(
    settings: Settings,
    adapters: dict[str, Path],
    port: int | None = None,
    device: str = "cpu",
    attention: str = "sdpa",
    patience: float = 300,
) -> AbstractContextManager[str]:
    """Serve several adapters on one base model while the block runs; a request chooses one by its ``model``.

    The base is loaded once, in bf16, and answers to the name "base" without an adapter. Requests take turns, since one
    adapter is active at a time.

    Args:
        settings: whose base model is served.
        adapters: the folder of each adapter by the name that clients use.
        port, device, attention, patience: as for :func:`serving`.

    Raises:
        ServingError: as for :func:`serving`, and for an adapter that cannot be loaded on this base.
    """
    if not adapters or "base" in adapters:
        raise ServingError('give at least one adapter, under another name than "base", which is the model without one')
    base, port = resolve(settings), _free(port)
    job = {"name": base.name, "folder": str(base.folder), "revision": base.revision, "device": device}
    job |= {"attention": attention, "adapters": {name: str(folder) for name, folder in adapters.items()}}
    return _running(["helpers.publish.adapter_server", json.dumps(job), str(port)], port, patience, ROOT)


@contextlib.contextmanager
def _running(module: list[str], port: int, patience: float, cwd: Path) -> Iterator[str]:
    """Run a server, a module with its arguments, as a process of its own while the block runs, and yield its address."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    words = [sys.executable, "-c", FOLLOW_PARENT, sys.executable, "-m", *module]
    with tempfile.TemporaryFile() as log:
        options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        server = subprocess.Popen(words, cwd=cwd, env=os.environ | offline, **options)
        try:
            _wait_until_ready(server, f"http://{HOST}:{port}/health", time.monotonic() + patience, log)
            yield f"http://{HOST}:{port}/v1"
        finally:
            server.terminate()  # the server ends what it is doing and frees the model
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _free(port: int | None) -> int:
    """The wanted port, if nobody listens there, or any free one."""
    try:
        with socket.create_server((HOST, port or 0)) as probe:  # takes a port that was closed a moment ago, too
            return probe.getsockname()[1]
    except OSError:
        raise ServingError(
            f"port {port} is in use by another program: stop that, or choose a free port, such as {_free(None)}"
        ) from None


def _wait_until_ready(server: subprocess.Popen, address: str, deadline: float, log) -> None:
    while server.poll() is None:
        if time.monotonic() > deadline:
            raise ServingError("the server did not answer in time: a large model needs more patience, given in seconds")
        with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    log.seek(0)
    last = (log.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
    raise ServingError(f"the server ended with code {server.returncode} while starting: {last[:300]}")
