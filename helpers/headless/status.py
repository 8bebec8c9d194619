"""What happened to each notebook, kept in ``status.json`` as it happens, and whether that still stands."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from helpers.headless.masking import mask_secrets
from helpers.headless.parameters import find_notebooks, read_notebook
from helpers.records import FILE_NAME, RecordError, load, write_atomically
from helpers.settings import PROFILES, ROOT, shown


class Status:
    """The status file of one output folder, such as ``runs/small``."""

    def __init__(self, folder: Path, profile: str):
        """Read the file, or start an empty one where there is none or it is damaged."""
        self.folder, self.file = folder, folder / "status.json"
        self.profile, self.notebooks = profile, {}
        self.damaged = False
        try:
            entries = json.loads(self.file.read_text(encoding="utf-8"))["notebooks"]
            self.notebooks = {name: dict(entry) for name, entry in entries.items() if entry["status"]}
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError):
            self.damaged = True

    def entry(self, notebook: Path) -> dict:
        return self.notebooks.get(notebook.stem, {})

    def begin(self, notebook: Path, **fields) -> None:
        """Forget the last run of a notebook, and note that one starts."""
        self.notebooks.pop(notebook.stem, None)
        self.update(notebook, status="running", **fields)

    def update(self, notebook: Path, **fields) -> None:
        self.notebooks.setdefault(notebook.stem, {}).update(mask_secrets(fields))
        content = {"profile": self.profile, "notebooks": dict(sorted(self.notebooks.items()))}
        write_atomically(self.file, json.dumps(content, indent=1))

    def executed(self, notebook: Path) -> Path:
        """Where the executed copy of a notebook is kept."""
        return self.folder / "notebooks" / notebook.name

    def up_to_date(self, notebook: Path, parameters: dict) -> bool:
        """Whether a notebook passed with the same inputs, and after those before it whose records it may read."""
        entry = self.entry(notebook)
        makers = [p for p in find_notebooks() if p.stem < notebook.stem and promised(p)]
        return (
            entry.get("status") == "ok"
            and entry.get("digest") == digest(notebook, parameters)
            and self.executed(notebook).is_file()
            and entry.get("finished", "") >= max((self.entry(p).get("finished") or "" for p in makers), default="")
            and not self.missing_records(notebook, parameters)
        )

    def judge(self, notebook: Path, executed, parameters: dict, begun: str) -> tuple[str, str | None, int | None]:
        """Whether a notebook that ran to its end did what it should, from its executed copy and the records.

        Returns:
            "ok" or "failed", the reason, and the number of the cell that failed, if it was one.
        """
        cells = [c for c in executed.cells if c.cell_type == "code"]
        for number, cell in enumerate(cells, 1):
            for output in cell.outputs:
                if output.output_type == "error":
                    never = any(c.execution_count is None and c.source.strip() for c in cells)
                    rest = ", and the cells after it never ran" if never else ""
                    return "failed", f"it ended with {output.ename}: {output.evalue}{rest}", number
            if cell.execution_count is None and cell.source.strip():
                return "failed", "it never ran: a cell before it ended the kernel", number
        missing = self.missing_records(notebook, parameters, begun)
        if missing:
            return "failed", f"every cell ran, but it wrote no {shown(missing[0])}", None
        return "ok", None, None

    def missing_records(self, notebook: Path, parameters: dict, since: str = "") -> list[Path]:
        """Records that the notebook promises and that are absent, damaged or older than ``since``."""
        seed = parameters.get("seed", PROFILES[self.profile]["seed"])
        missing = []
        for method in promised(notebook):
            path = self.folder / f"{method}-s{seed}" / FILE_NAME
            try:
                if load(path).finished < since:
                    missing.append(path)
            except RecordError:
                missing.append(path)
        return missing


def promised(notebook: Path) -> list[str]:
    """The methods whose records a notebook promises to write, in its metadata."""
    return read_notebook(notebook).metadata.get("fine_tuning", {}).get("records", [])


def digest(notebook: Path, parameters: dict) -> str:
    """Changes with all that decides a result here: the notebook, its parameters, the helpers, a local data file."""
    total = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    helpers = (p for p in (ROOT / "helpers").rglob("*") if p.suffix in (".py", ".json"))
    data = str(parameters.get("data", ""))
    local = [base / data for base in (notebook.parent, ROOT) if data and (base / data).is_file()]
    for path in [notebook, *sorted(helpers), *local[:1]]:
        with open(path, "rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()[:16]
