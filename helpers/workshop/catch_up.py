"""Continue with someone else's finished runs where your own are lost: they are put in place as a notebook leaves them."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from helpers import records
from helpers.headless.parameters import promised
from helpers.records import FILE_NAME
from helpers.settings import ROOT, Settings, shown
from helpers.sources import models_folder
from helpers.workshop.archives import CatchUpError, archive_name, is_shipped, unpack

import httpx


def catch_up(notebook: str, settings: Settings, source: str | Path | None = None) -> None:
    """Put the finished runs of a notebook in place, as its execution would have, and say so.

    A finished run of your own is never replaced, and the record of a run from an archive says where it comes from.

    Args:
        notebook: such as "02_lora_train".
        settings: yours; profile, seed, model and data have to be those of the shipped run.
        source: the folder of the archives, or its http address; by default the folder of the models.

    Raises:
        CatchUpError: if all the runs are there and one is your own, or an archive is missing, damaged or of another base.
        RecordError: if the record of a run that is there is damaged.
    """
    series, path = settings.series_folder, ROOT / "notebooks" / f"{notebook}.ipynb"
    runs = {f"{method}-s{settings.seed}": method for method in (promised(path) if path.is_file() else [])}
    if not runs:
        raise CatchUpError(f"{notebook!r} is not a notebook that leaves a run; try 02_lora_train or 03_full_train")
    finished = {run: records.load(series / run) for run in runs if (series / run / FILE_NAME).is_file()}
    own, missing = [run for run in finished if not is_shipped(finished[run])], sorted(runs.keys() - finished.keys())
    if own and not missing:
        raise CatchUpError(
            f"there is a finished run of your own in {shown(series / own[0])}: nothing was replaced. To continue with the "
            "shipped one, move that folder away first"
        )
    try:
        series.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=series, prefix=".catch-up-") as scratch:
            for run in missing:
                archive = _archive(archive_name(settings.profile, run), source, Path(scratch))
                unpack(archive, runs[run], settings, Path(scratch, run))
            for run in missing:
                _put_in_place(Path(scratch, run), series / run)
    except OSError as error:
        raise CatchUpError(f"{shown(series)}: {error.strerror or error}; the catch-up was not put in place") from None
    for run in runs:
        shipped = f"*** CATCH-UP: {run} was not trained here. {records.load(series / run).note} ***"
        print(f"{run}: your own run, kept" if run in own else shipped)


def _put_in_place(run: Path, target: Path) -> None:
    """Move an unpacked run to its place; what an interrupted run left there is moved aside."""
    if os.path.lexists(target):  # it has no record, but perhaps checkpoints
        aside = target.with_name(f"{target.name}-interrupted-{records.now().replace(':', '')}")
        os.rename(target, aside)
        print(f"{target.name}: what was in its place is now in {shown(aside)}")
    os.rename(run, target)


def _archive(name: str, source: str | Path | None, scratch: Path) -> Path:
    """An archive as a local file; one behind an address is fetched first."""
    if str(source).startswith(("http://", "https://")):
        _download(f"{str(source).rstrip('/')}/{name}", scratch / name)
        return scratch / name
    path = (Path(source).expanduser() if source else models_folder()) / name
    if not path.is_file():
        raise CatchUpError(
            f"there is no catch-up archive {shown(path)}: ask your instructor for its folder or address and give it as "
            'source; anyone who has finished runs makes one with "make catch-up"'
        )
    return path


def _download(address: str, target: Path) -> None:
    """Fetch a file of a declared size.

    Raises:
        CatchUpError: for whatever the server or the network does instead.
    """
    try:
        with httpx.stream("GET", address, timeout=20, follow_redirects=True) as answer, open(target, "wb") as file:
            answer.raise_for_status()
            size, free = int(answer.headers["content-length"]), shutil.disk_usage(target.parent).free
            if size > free:
                raise CatchUpError(f"{address} has {size:,} bytes and the disk has {free:,} free")
            for piece in answer.iter_raw():
                file.write(piece)
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CatchUpError(f"{address} could not be fetched ({reason}); check the address and the network") from None
