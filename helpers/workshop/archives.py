"""The archives of catch-up: an uncompressed zip of one run, with its record and its adapter or model.

Nothing is unpacked that the record does not list, that belongs to another base model, or that is larger than the archive
or the free space of the disk. The zip finds damaged bytes, and the manifest beside the weights has their sha256.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from helpers import records
from helpers.records import FILE_NAME, RecordError, RunRecord
from helpers.settings import Settings, shown
from helpers.sources import resolve

ORIGIN = "origin: catch-up"
SUFFIXES = {".json", ".safetensors", ".jinja", ".md", ".txt", ".model"}  # data only: nothing that could be executed


class CatchUpError(RuntimeError):
    """A catch-up that cannot be packed, found, trusted or put in place; the message says why and what to do."""


def archive_name(profile: str, run: str) -> str:
    """The file name of the archive of a run, such as lora-s0."""
    return f"catch-up-{profile}-{run}.zip"


def is_shipped(record: RunRecord) -> bool:
    """Whether the run came out of an archive."""
    return (record.note or "").startswith(ORIGIN)


def pack(settings: Settings, method: str, folder: Path) -> Path:
    """Write the archive of one finished run of this profile and seed into a folder, in one step.

    Raises:
        CatchUpError: for a run that is not finished, lacks a file, or was itself a catch-up.
    """
    run = settings.series_folder / f"{method}-s{settings.seed}"
    try:
        record = records.load(run)
    except RecordError as error:
        raise CatchUpError(f"{error}: run the series with this profile first") from None
    if is_shipped(record):
        raise CatchUpError(f"{shown(run)} is itself a catch-up; pack runs where they were made")
    _require_result(record, run, shown(run))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / archive_name(settings.profile, run.name)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with zipfile.ZipFile(Path(scratch, target.name), "w") as archive:  # weights do not compress
            for name in _packed(record):
                archive.write(run / name, name)
        os.replace(Path(scratch, target.name), target)
    return target


def unpack(archive: Path, method: str, settings: Settings, target: Path) -> None:
    """Write the run of an archive into a new folder that has the run's name, and mark its record.

    Raises:
        CatchUpError: for an archive that is damaged, too large, or of another run, base model or data.
        OSError: where the folder cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            _check_sizes(packed.infolist(), archive, target.parent)
            packed.extract(FILE_NAME, target)
            record = records.load(target)
            _check_identity(record, method, settings, archive.name)
            for name in _packed(record):
                packed.extract(name, target)
    except CatchUpError:
        raise
    except RecordError as error:
        raise CatchUpError(f"{archive.name}: {str(error).replace(str(target), target.name)}") from None
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which it is for a place outside of the file
            raise
        what = f"damaged or not a catch-up archive ({type(error).__name__}: {str(error)[:200]})"
        raise CatchUpError(f"{archive.name} is {what}; fetch it again") from None
    _require_result(record, target, archive.name)
    record.note = f"{ORIGIN}; trained on {record.device.get('name')}, finished {record.finished}"
    record.save(target)


def _packed(record: RunRecord) -> list[str]:
    """The files of a run that belong into its archive: of a known kind, and no deeper than an adapter or a model lies."""
    known = {name for name in record.files if PurePosixPath(name).suffix in SUFFIXES and name.count("/") < 3}
    return sorted(known | {FILE_NAME})


def _require_result(record: RunRecord, folder: Path, where: str) -> None:
    """Refuse a record whose files are not all in its folder."""
    if record.method != "base" and not any(name.endswith(".safetensors") for name in record.files):
        raise CatchUpError(f"{where}: the record lists no weights, so there is nothing to continue with")
    if lost := records.lost_files(record, folder):
        raise CatchUpError(
            f"{where}: {lost[0][:200]!r} is missing or has another size than the record says, or is no file of a run"
        )


def _check_identity(record: RunRecord, method: str, settings: Settings, name: str) -> None:
    """Refuse a run that is not the wanted one, or that was made from another base model or other data than here."""
    held, wanted = (record.profile, record.method, record.seed), (settings.profile, method, settings.seed)
    if held != wanted:
        raise CatchUpError(f"{name} holds {' '.join(map(str, held))}, and {' '.join(map(str, wanted))} is wanted")
    base, here = record.model.get("fingerprint"), resolve(settings).fingerprint
    if base != here:
        raise CatchUpError(
            f"{name} was made on another base model (weights {base}, yours are {here}): its adapters would load here and "
            "answer nonsense"
        )
    for setting in ("model", "data"):
        shipped, own = record.settings.get(setting), getattr(settings, setting)
        if shipped != own:
            raise CatchUpError(f"the run in {name} has {setting} = {shipped!r}, your settings say {own!r}")


def _check_sizes(members: list[zipfile.ZipInfo], archive: Path, folder: Path) -> None:
    """Refuse, before anything is written, an archive that holds more than it weighs, or more than the disk has room for."""
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in members):
        raise CatchUpError(f"{archive.name} is compressed or encrypted, which no catch-up archive is: fetch it again")
    size, free = sum(info.file_size for info in members), shutil.disk_usage(folder).free
    if size > archive.stat().st_size:
        raise CatchUpError(f"{archive.name} is damaged: it claims to hold more than its own size; fetch it again")
    if size > free:
        raise CatchUpError(f"{archive.name} takes {size / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free")
