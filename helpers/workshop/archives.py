"""Archives of finished runs: an uncompressed zip of one run (record, adapter or model) with a manifest of sha256 hashes.

Nothing is unpacked that the manifest does not name, that has another hash, that belongs to another base model, or that is
larger than the archive or the free space of the disk.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from helpers import records
from helpers.records import RecordError, RunRecord, parse_json, sha256
from helpers.settings import Settings, shown
from helpers.sources import MANIFEST, resolve

ORIGIN = "origin: catch-up"
SUFFIXES = {".json", ".safetensors", ".jinja", ".md", ".txt", ".model"}  # data only: nothing that could be executed
KEYS = {"profile": str, "run": str, "base": str, "files": dict}
MANIFEST_BYTES = 1_000_000  # at most


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
    found = sorted(f for f in run.rglob("*") if f.is_file() and not f.is_symlink() and f.suffix in SUFFIXES)
    files = {file.relative_to(run).as_posix(): file for file in found}
    _require_result(record, {name: file.stat().st_size for name, file in files.items()}, shown(run))
    manifest = {"profile": settings.profile, "run": run.name, "base": resolve(settings).fingerprint}
    manifest["files"] = {name: sha256(file) for name, file in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / archive_name(settings.profile, run.name)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with zipfile.ZipFile(Path(scratch, target.name), "w") as archive:  # weights do not compress
            archive.writestr(MANIFEST, json.dumps(manifest, indent=1))
            for name, file in files.items():
                archive.write(file, name)
        os.replace(Path(scratch, target.name), target)
    return target


def unpack(archive: Path, method: str, settings: Settings, target: Path) -> None:
    """Write the run of an archive into a new folder that has the run's name: each file checked, the record marked.

    Raises:
        CatchUpError: for an archive that is damaged, too large, or of another run, base model or data.
        OSError: where the folder cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            manifest = _read_manifest(packed, archive, target.name, settings)
            members = {name: packed.getinfo(name) for name in manifest["files"]}
            _check_sizes(members, archive, target.parent)
            for name, expected in manifest["files"].items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                with packed.open(name) as content, open(target / name, "wb") as file:
                    shutil.copyfileobj(content, file)
                if sha256(target / name) != expected:
                    raise CatchUpError(f"{archive.name} is damaged: the hash of {name} is not the one in its manifest")
        record = records.load(target)
    except CatchUpError:
        raise
    except RecordError as error:
        raise CatchUpError(f"{archive.name}: {str(error).replace(str(target), target.name)}") from None
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which it is for a place outside of the file
            raise
        what = f"damaged or not a catch-up archive ({type(error).__name__}: {error})"
        raise CatchUpError(f"{archive.name} is {what}; fetch it again") from None
    if (record.method, record.seed, record.model.get("fingerprint")) != (method, settings.seed, manifest["base"]):
        raise CatchUpError(f"{archive.name}: its record is of another run than its name says")
    for name in ("model", "data"):
        shipped, wanted = record.settings.get(name), getattr(settings, name)
        if shipped != wanted:
            raise CatchUpError(f"the shipped {target.name} has {name} = {shipped!r}, your settings say {wanted!r}")
    _require_result(record, {name: info.file_size for name, info in members.items()}, archive.name)
    record.note = f"{ORIGIN}; trained on {record.device.get('name')}, finished {record.finished}"
    record.save(target)


def _require_result(record: RunRecord, sizes: dict[str, int], where: str) -> None:
    """Refuse a record whose result is not there: ``sizes`` in bytes, by path inside the run."""
    expected = {name: size for name, size in record.files.items() if PurePosixPath(name).suffix in SUFFIXES}
    if record.method != "base" and not any(name.endswith(".safetensors") for name in expected):
        raise CatchUpError(f"{where}: the record lists no weights, so there is nothing to continue with")
    if wrong := [name for name, size in expected.items() if sizes.get(name) != size]:
        raise CatchUpError(f"{where}: {wrong[0]} is missing or has another size than the record says")


def _read_manifest(packed: zipfile.ZipFile, archive: Path, run: str, settings: Settings) -> dict:
    """The manifest, if it is of this run, names only files that a run has, and was made with the base model that is here."""
    info = packed.getinfo(MANIFEST)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > MANIFEST_BYTES:
        raise CatchUpError(f"{archive.name} is not a catch-up archive: its manifest is compressed or too large")
    manifest = parse_json(packed.read(MANIFEST), f"the manifest of {archive.name}", CatchUpError, KEYS)
    given, wanted = (manifest["profile"], manifest["run"]), (settings.profile, run)
    if given != wanted:
        raise CatchUpError(f"{archive.name} holds {' '.join(given)}, and {' '.join(wanted)} is wanted")
    for name in manifest["files"]:
        path = PurePosixPath(name)
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in name
            or path.suffix not in SUFFIXES
            or len(path.parts) > 3
        ):
            raise CatchUpError(f"{archive.name} names a file that no run has ({name[:99]!r}): it was not unpacked")
    here = resolve(settings).fingerprint
    if manifest["base"] != here:
        raise CatchUpError(
            f"{archive.name} was made on another base model (weights {manifest['base']}, yours are {here}): its adapters "
            "would load here and answer nonsense"
        )
    return manifest


def _check_sizes(members: dict[str, zipfile.ZipInfo], archive: Path, folder: Path) -> None:
    """Refuse, before anything is written, an archive that holds more than it weighs, or more than the disk has room for."""
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in members.values()):
        raise CatchUpError(f"{archive.name} is compressed or encrypted, which no catch-up archive is: fetch it again")
    size, free = sum(info.file_size for info in members.values()), shutil.disk_usage(folder).free
    if size > archive.stat().st_size:
        raise CatchUpError(f"{archive.name} is damaged: it claims to hold more than its own size; fetch it again")
    if size > free:
        raise CatchUpError(f"{archive.name} takes {size / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB free")
