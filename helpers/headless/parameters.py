"""The notebooks of the series and their parameters, checked by name, type and range before anything runs."""

from __future__ import annotations

import ast
import re
from contextlib import suppress
from pathlib import Path

from helpers.headless.masking import mask_secrets
from helpers.records import read_json
from helpers.settings import ROOT, SettingsError, checked, nearest, shown
from helpers.storage import misfit

NOTEBOOKS = ROOT / "notebooks"
NAME = r"\d\d_\w{1,100}"  # of a notebook of the series
_OWN_OPTION = ("profile", "runs_dir")


class UsageError(ValueError):
    """A wrong argument, or a notebook that cannot be read; nothing was run."""


def find_notebooks(wanted: str = "") -> list[Path]:
    """The notebooks of the series in order, or those that ``wanted`` names by number or name.

    A copy that JupyterLab made, such as ``02_lora_train-Copy1.ipynb``, is none of them.

    Raises:
        UsageError: for a name that matches none.
    """
    every = sorted(p for p in NOTEBOOKS.glob("*.ipynb") if re.fullmatch(NAME, p.stem))
    if not every:
        raise UsageError(f"there are no notebooks in {NOTEBOOKS}")
    chosen = set()
    for word in wanted.replace(",", " ").split():
        match = {p for p in every if Path(word).stem in (p.stem, p.stem[:2])}
        if not match:
            raise UsageError(f"there is no notebook {word!r}; {nearest(word, [p.stem for p in every])}")
        chosen |= match
    return sorted(chosen) or every


def read_notebook(path: Path) -> dict:
    """The JSON of a notebook file.

    Raises:
        UsageError: if the file is no notebook.
    """

    def error(sentence: str) -> UsageError:
        return UsageError(f"{path.name} is no readable notebook ({sentence}); `git checkout {shown(path)}` restores it")

    content = read_json(path, error, {"cells": list, "metadata": dict})
    for cell in content["cells"]:
        if misfit(cell, {"cell_type": str, "metadata": dict, "source": str | list}, "cell", whole=True):
            raise error("a cell is no cell")
        cell["source"] = "".join(map(str, cell["source"]))
    return content


def promised(notebook: Path) -> list[str]:
    """The methods whose records a notebook promises to write, in its metadata."""
    own = read_notebook(notebook)["metadata"].get("fine_tuning")
    names = own.get("records") if isinstance(own, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def parameters_of(notebook: Path) -> dict[str, object]:
    """Names and default values in the cell tagged ``parameters``.

    Raises:
        UsageError: if that cell holds anything else than names and plain values.
    """
    defaults: dict[str, object] = {}
    for cell in read_notebook(notebook)["cells"]:
        if "parameters" in (cell["metadata"].get("tags") or []):
            try:
                for node in ast.parse(cell["source"]).body:
                    defaults[node.targets[0].id] = ast.literal_eval(node.value)
            except (SyntaxError, ValueError, AttributeError, RecursionError) as error:
                line = getattr(error, "lineno", None) or getattr(locals().get("node"), "lineno", 1)
                raise UsageError(
                    f"{notebook.name}: line {line} of the parameters cell is not of the form name = value, "
                    "with a plain number, text, True, False or None as its value"
                ) from None
    return defaults


def parse_parameters(given: str | dict, notebooks: list[Path]) -> dict[str, object]:
    """Parameters with their types, checked against the notebooks that will run.

    Args:
        given: ``name=value`` pairs separated by spaces, or a dictionary.
        notebooks: those that will run; each gets the parameters that it has.

    Raises:
        UsageError: names the parameter and what is expected; what looks like a secret is refused.
    """
    known = {name for path in notebooks for name in parameters_of(path)} - {*_OWN_OPTION}
    values: dict[str, object] = {}
    for name, value in _pairs(given) if isinstance(given, str) else given.items():
        if name in _OWN_OPTION:
            raise UsageError(f"{name} is not among the parameters: give it as {name.upper()}=… to make")
        if name not in known:
            hint = nearest(name, known)
            raise UsageError(f"no notebook that would run has a parameter {mask_secrets(name)[:80]!r}; {hint}")
        if mask_secrets(str(value)) != str(value):
            why = "parameters are saved in the notebook and in the status file; use `hf auth login`"
            raise UsageError(f"the value of {name} looks like a secret: {why}")
        if name in values:
            raise UsageError(f"{name} is given twice")
        try:
            values[name] = checked(name, _typed(value) if isinstance(value, str) else value)
        except SettingsError as error:
            raise UsageError(str(error)) from None
    return values


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = [tuple(word.split("=", 1)) for word in text.split()]
    for pair in pairs:
        if len(pair) < 2 or not all(pair):
            word = mask_secrets("=".join(pair))[:80]
            raise UsageError(f"{word!r} is not of the form name=value (no spaces around = or inside the value)")
    return pairs


def _typed(text: str) -> object:
    """A number or a truth value, where the text is one."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"true": True, "false": False}.get(text.lower(), text)
