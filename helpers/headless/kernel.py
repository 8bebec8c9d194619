"""What the kernel of a headless run does besides: it limits the output of a cell, and notes which files were read.

An IPython extension that :mod:`helpers.headless.execute` loads. Output is cut here, where it arises: further on, a cell
that prints without end would fill the memory of each process that it passes through.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from helpers.headless.processes import FOLDER
from helpers.records import FILE_NAME, sha256

import zmq
from jupyter_client.session import Session

READS = "FINE_TUNING_READS"  # in the environment: the file for the hashes of what was read
CELL, NOTEBOOK = 8_000_000, 20_000_000  # characters that a cell may put out, and that a notebook keeps
CUT = "\n[The output is cut off here: a cell may put out 8 MB, and a notebook keeps 20 MB.]\n"
LINE, VALUE = 60, 100  # what each line and each value cost besides their characters
OUTPUTS = ("stream", "display_data", "execute_result", "update_display_data", "comm_open", "comm_msg")
HELPERS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


class Limit:
    """Counts the output of each cell and of the notebook, and cuts it."""

    def __init__(self):
        self.spent: defaultdict[str | None, int] = defaultdict(int)
        self.kept, self.is_cut = 0, set()

    def apply(self, kind: str, content: dict, cell: str | None) -> tuple[str, dict] | None:
        """The kind and content to send instead of those of a message of a cell; None to send nothing."""
        if kind in ("error", "execute_reply"):
            return kind, shorten_error(content)
        if kind not in OUTPUTS:
            return kind, content
        if cell in self.is_cut:
            return None
        room, cost = max(0, min(CELL - self.spent[cell], NOTEBOOK - self.kept)), size(content)
        if cost > room:
            self.is_cut.add(cell)
            text = content["text"][:room] if kind == "stream" else ""
            kind, content = "stream", {"name": "stdout", "text": text[: len(text) * room // size(text)] + CUT}
            cost = size(content)
        self.spent[cell] += cost
        self.kept += cost * (kind != "update_display_data")
        return kind, content


def size(value: object) -> int:
    """What a value costs to keep: its characters, and something for each line and for each value."""
    if isinstance(value, dict | list):
        return VALUE + sum(size(item) for item in (value.values() if isinstance(value, dict) else value))
    return VALUE + (len(value) + LINE * value.count("\n") if isinstance(value, str) else len(str(value)))


def shorten_error(content: dict) -> dict:
    """An error, or the reply that reports one, without the middle of long texts."""
    short = {name: content[name][:10_000] for name in ("ename", "evalue") if isinstance(content.get(name), str)}
    frames = content.get("traceback")
    if isinstance(frames, list):
        frames = frames if len(frames) < 40 else [*frames[:5], "...", *frames[-30:]]
        short["traceback"] = [f if len(f) < 20_000 else f"{f[:10_000]}\n...\n{f[-10_000:]}" for f in frames]
    return content | short


def limit_output() -> None:
    """Put a :class:`Limit` into all that this kernel sends."""
    limit, send = Limit(), Session.send

    def limited(self, stream, message, content=None, parent=None, ident=None, buffers=None, track=False, **header):
        if not isinstance(message, dict):
            message = self.msg(message, content=content, parent=parent, **header)
        kind, parent = message["header"]["msg_type"], message["parent_header"]
        allowed = limit.apply(kind, message["content"], (parent or {}).get("msg_id"))
        if allowed is None:
            return message
        message = message | {"content": allowed[1]} if allowed[0] == kind else self.msg(*allowed, parent=parent)
        return send(self, stream, message, ident=ident, buffers=buffers, track=track)

    Session.send = limited


class Reads:
    """The hash of each file of the helpers, and of each record of this run, as it was when it was read.

    What serves to run notebooks decides no result, and is left out.
    """

    def __init__(self, runs: str):
        self.runs, self.hashes, self.written, self.hashing = os.path.join(runs, ""), {}, set(), threading.local()

    def hook(self, event: str, arguments: tuple) -> None:
        """An audit hook: Python calls it for every file that is opened or renamed."""
        if event == "open" and isinstance(arguments[0], str) and not hasattr(self.hashing, "now"):
            self.note(arguments[0], isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE == os.O_RDONLY)
        elif event == "os.rename" and isinstance(arguments[1], str | os.PathLike):
            self.note(os.fspath(arguments[1]), False)

    def note(self, path: str, read: bool) -> None:
        """Note that a file was read, or was written, which makes it a result of this notebook."""
        path = os.path.abspath(path)
        code = path.startswith(HELPERS) and not path.startswith(os.path.dirname(os.path.abspath(__file__)))
        if not code and not (path.startswith(self.runs) and path.endswith(os.sep + FILE_NAME)):
            return
        self.hashing.now = True
        with suppress(OSError, ValueError):  # there is no such file, which its reader is about to learn
            path = importlib.util.source_from_cache(path) if path.endswith(".pyc") else path
            if not read:
                self.written.add(path)
                self.hashes.pop(path, None)
            elif path not in self.written:
                present = sha256(Path(path))
                self.hashes[path] = present if self.hashes.get(path, present) == present else "changed"
        del self.hashing.now


def load_ipython_extension(shell) -> None:
    """Begin to limit and to note."""
    limit_output()
    reads = Reads(os.environ[FOLDER])
    for name in [getattr(module, "__file__", None) for module in [*sys.modules.values()]]:
        reads.note(name or "", True)
    reads.note(os.path.join(HELPERS, "profiles.toml"), True)  # which settings has read by now
    sys.addaudithook(reads.hook)
    thread = shell.kernel.iopub_thread  # its socket would drop what comes faster than it is fetched
    thread.schedule(lambda: thread.socket.setsockopt(zmq.SNDHWM, 0))

    def report(*_) -> None:
        with suppress(OSError):  # a disk that is full: the notebook then runs again the next time
            Path(os.environ[READS]).write_text(json.dumps(reads.hashes), encoding="utf-8")

    shell.events.register("post_run_cell", report)
