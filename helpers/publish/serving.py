"""A model behind an OpenAI-compatible server on this machine: started, waited for, and always stopped.

The server is `transformers serve`. It listens on 127.0.0.1 only, so nobody but this machine reaches it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from helpers.settings import ROOT, Settings, shown
from helpers.sources import resolve

HOST = "127.0.0.1"


class ServingError(RuntimeError):
    """A server that cannot start or did not answer; the message says why and what to do."""


def command(folder: Path, port: int, device: str = "cpu", attention: str = "sdpa") -> list[str]:
    """What starts the server, to be run in the parent of the model's folder."""
    return ["transformers", "serve", folder.name, "--host", HOST, "--port", str(port), "--device", device,
            "--attn-implementation", attention]  # fmt: skip


def vllm_command(settings: Settings, merged: bool) -> str:
    """The command that serves a run with vLLM in a container for ROCm, written from documentation and never run here.

    Args:
        merged: serve the folder ``merged`` of the series; otherwise the base with the run's adapter beside it.
    """
    if settings.model in ("tiny", "smollm2-135m"):
        base, mount = "/base", f'-v "${{MODELS_DIR:-$PWD/models}}/{resolve(settings).folder.name}:/base:ro" '
    elif Path(settings.model).is_dir():
        base, mount = "/base", f'-v "{settings.model}:/base:ro" '
    else:
        base, mount = settings.model, '-v "$HOME/.cache/huggingface:/root/.cache/huggingface" '
    rank = next((allowed for allowed in (8, 16, 32, 64, 128, 256) if allowed >= settings.rank), settings.rank)
    what = "/series/merged --served-model-name merged" if merged else (
        f"{base} --enable-lora --max-lora-rank {rank} --lora-modules answers=/series/{settings.folder.name}/adapter"
    )  # fmt: skip
    return (
        "docker run --rm --entrypoint vllm --device /dev/kfd --device /dev/dri/renderD128 \\\n"
        '  --group-add "$(stat -c %g /dev/kfd)" --group-add "$(stat -c %g /dev/dri/renderD128)" \\\n'
        f'  -p 127.0.0.1:8000:8000 -v "$PWD/{os.path.relpath(settings.series_folder, ROOT)}:/series:ro" '
        f"{'' if merged else mount}\\\n"
        f"  IMAGE serve {what} \\\n"
        f"  --dtype bfloat16 --max-model-len {2 * max(settings.max_length, settings.max_new_tokens)}"
    )


@contextlib.contextmanager
def serving(
    folder: Path, port: int | None = None, device: str = "cpu", attention: str = "sdpa", patience: float = 300
) -> Iterator[str]:
    """Serve a saved model while the block runs. The model's name for clients is the name of its folder.

    Args:
        folder: of a whole model with its tokenizer, such as a merged one.
        port: None takes any free one.
        patience: seconds to wait until the model is loaded and the server says that it is well.

    Yields:
        The address for a client's ``base_url``, such as ``http://127.0.0.1:8000/v1``.

    Raises:
        ServingError: if the port is taken, the packages for serving are absent, or the server ends or stays silent.
    """
    from transformers.utils.import_utils import is_serve_available  # slow, and only needed here

    folder = Path(folder).resolve()
    if not (folder / "config.json").is_file():
        raise ServingError(f"there is no model in {shown(folder)}: merge one first")
    if not is_serve_available():
        raise ServingError("the packages for serving are not installed: pip install 'transformers[serving]'")
    port = _free(port)
    start = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            start + command(folder, port, device, attention)[1:], cwd=folder.parent, env=os.environ | quiet,
            stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent,
        )  # fmt: skip
        try:
            _wait_until_well(server, f"http://{HOST}:{port}/health", time.monotonic() + patience, log)
            yield f"http://{HOST}:{port}/v1"
        finally:
            server.terminate()  # the server ends what it is doing and frees the model
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _free(port: int | None) -> int:
    """The port asked for, if nobody listens there, or any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was closed a moment ago is free
        try:
            probe.bind((HOST, port or 0))
            return probe.getsockname()[1]
        except OSError:
            raise ServingError(
                f"port {port} is in use by another program: stop that, or choose a free port, such as {_free(None)}"
            ) from None


def _end_with_parent() -> None:
    """Ask Linux to end this process when the notebook's kernel is gone, however that ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait_until_well(server: subprocess.Popen, address: str, deadline: float, log) -> None:
    while time.monotonic() < deadline:
        if server.poll() is not None:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise ServingError(f"the server ended with code {server.returncode} while starting: {last[0][:300]}")
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise ServingError("the server did not answer in time: a large model needs more patience, given in seconds")
