"""What the kernel of a headless run does besides: it limits the output of a cell, and notes which files were read.

An IPython extension that :mod:`helpers.headless.execute` loads. Output is cut here, where it arises: further on, a cell
that prints without end would fill the memory of each process that it passes through.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from helpers.headless.processes import FOLDER
from helpers.records import FILE_NAME

import zmq
from jupyter_client.session import Session

READS = "FINE_TUNING_READS"  # in the environment: the file for the names of what was read
CELL, NOTEBOOK = 8_000_000, 20_000_000  # characters that a cell may put out, and that a notebook keeps
CUT = "\n[The output is cut off here: a cell may put out 8 MB, and a notebook keeps 20 MB.]\n"
LINE, MESSAGE, SHOWN = 60, 300, 4000  # what a line, a message and a display cost besides their characters
OUTPUTS = ("stream", "display_data", "execute_result", "update_display_data", "comm_open", "comm_msg")
ROOM = os.path.dirname(os.path.abspath(__file__))
HELPERS = os.path.dirname(ROOM)


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
        room, text = max(0, min(CELL - self.spent[cell], NOTEBOOK - self.kept)), content.get("text", "")
        too_long = kind == "stream" and len(text) > room  # a gigabyte need not be counted to the end
        if too_long:
            content = content | {"text": text[:room]}
        cost = size(kind, content)
        if cost > room or too_long:
            self.is_cut.add(cell)
            text = content["text"] if kind == "stream" else ""
            kind, content = "stream", {"name": "stdout", "text": text[: len(text) * room // cost] + CUT}
            cost = size(kind, content)
        self.spent[cell] += cost
        self.kept += cost * (kind != "update_display_data")
        return kind, content


def size(kind: str, content: dict) -> int:
    """What an output costs to keep and to put on a page, in characters."""
    text = json.dumps(content, default=str)
    return len(text) + LINE * text.count("\\n") + MESSAGE + SHOWN * (kind in ("display_data", "execute_result"))


def shorten_error(content: dict) -> dict:
    """An error, or the reply that reports one, without the beginnings of long texts."""
    short = {name: content[name][-10_000:] for name in ("ename", "evalue") if isinstance(content.get(name), str)}
    if isinstance(content.get("traceback"), list):
        short["traceback"] = [frame[-20_000:] for frame in content["traceback"][-30:]]
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


def note_reads(shell) -> None:
    """After each cell, name the files of the helpers and the records of this run that were read, in the file for it.

    What serves to run notebooks decides no result, and is left out; so is a record that the notebook itself wrote.
    """
    read, written, runs = set(), set(), os.path.join(os.environ[FOLDER], "")

    def hook(event: str, arguments: tuple) -> None:  # Python calls it for every file that is opened or renamed
        if event == "open" and isinstance(arguments[0], str):
            note(os.path.abspath(arguments[0]))
        elif event == "os.rename":
            written.add(os.path.abspath(arguments[1]))

    def note(path: str) -> None:
        code = path.startswith(HELPERS) and not path.startswith(ROOM) and not path.endswith(".pyc")
        if code or (path.startswith(runs) and path.endswith(FILE_NAME)):
            read.add(path)

    def report(*_) -> None:
        for module in [*sys.modules.values()]:
            note(getattr(module, "__file__", None) or "")
        with suppress(OSError):  # a disk that is full: the notebook then runs again the next time
            Path(os.environ[READS]).write_text(json.dumps(sorted(read - written)), encoding="utf-8")

    note(os.path.join(HELPERS, "profiles.toml"))  # which settings has read by now
    sys.addaudithook(hook)
    shell.events.register("post_run_cell", report)


def load_ipython_extension(shell) -> None:
    """Begin to limit and to note."""
    limit_output()
    note_reads(shell)
    thread = shell.kernel.iopub_thread  # its socket would drop what comes faster than it is fetched
    thread.schedule(lambda: thread.socket.setsockopt(zmq.SNDHWM, 0))
