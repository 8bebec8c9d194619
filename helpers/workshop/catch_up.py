"""Going on with somebody else's finished runs: ``make catch-up`` packs them, ``catch_up`` puts one in place, loudly.

An archive is a zip with the runs of a profile (records, adapters, models) and a manifest of sha256 hashes. Nothing is taken
from it that the manifest does not name, that has another hash, or that belongs to another base model; a finished run of
the learner's own is never replaced; and the record of what was put in place says where it comes from.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from helpers.records import FILE_NAME, RecordError, git_state, load, load_series, now
from helpers.settings import ROOT, Settings, SettingsError, settings_for, shown
from helpers.sources import MANIFEST, ModelError, models_folder, resolve

ORIGIN = "origin: catch-up"
SUFFIXES = {".json", ".safetensors", ".jinja", ".md", ".txt", ".model"}  # data only: nothing that could be executed


class CatchUpError(RuntimeError):
    """A catch-up that cannot be packed, found, trusted or put in place; the message says why and what to do."""


def archive_name(profile: str) -> str:
    """The file name of a profile's archive."""
    return f"catch-up-{profile}.zip"


def runs_of(notebook: str) -> list[str]:
    """The methods whose finished runs a notebook promises in its metadata, such as base and lora.

    Raises:
        CatchUpError: if there is no such notebook, or it leaves no run.
    """
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    promised = json.loads(path.read_text(encoding="utf-8"))["metadata"] if path.is_file() else {}
    methods = promised.get("fine_tuning", {}).get("records", [])
    if not methods:
        raise CatchUpError(f"{notebook!r} is no notebook that leaves a run; try 02_lora_train or 03_full_train")
    return methods


def pack(settings: Settings, methods: list[str], folder: Path) -> Path:
    """Write the archive of finished runs of this profile and seed into a folder, in one step.

    Raises:
        CatchUpError: for a run that is not finished, or was itself a catch-up.
    """
    manifest = {"profile": settings.profile, "seed": settings.seed, "made": now(), "commit": git_state(ROOT)[0],
                "base": resolve(settings).fingerprint, "runs": {}}  # fmt: skip
    found: dict[str, Path] = {}
    for method in methods:
        run = settings.series_folder / f"{method}-s{settings.seed}"
        try:
            record = load(run)
        except RecordError as error:
            raise CatchUpError(f"{error}: run the series with this profile first") from None
        if (record.note or "").startswith(ORIGIN):
            raise CatchUpError(f"{shown(run)} is itself a catch-up; pack runs where they were made")
        files = [f for f in sorted(run.rglob("*")) if f.is_file() and f.suffix in SUFFIXES]
        manifest["runs"][run.name] = {str(PurePosixPath(f.relative_to(run))): _sha256(f) for f in files}
        found |= {f"{run.name}/{PurePosixPath(f.relative_to(run))}": f for f in files}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / archive_name(settings.profile)
    part = target.with_suffix(f".{os.getpid()}.part")
    try:
        with zipfile.ZipFile(part, "w") as archive:  # stored: weights do not compress
            archive.writestr(MANIFEST, json.dumps(manifest, indent=1))
            for name, file in found.items():
                archive.write(file, name)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target


def catch_up(notebook: str, settings: Settings, source: str | Path | None = None) -> None:
    """Put the finished runs of a notebook in place, as its execution would have, and say so.

    Args:
        notebook: such as "02_lora_train".
        settings: of the learner; profile, seed, model and data have to be those of the shipped run.
        source: the archive, a folder that holds it, or its http address; by default the folder of the models.

    Raises:
        CatchUpError: if a run of the learner's own is there, or the archive is missing, damaged or of another base.
    """
    series = settings.series_folder
    wanted = {f"{method}-s{settings.seed}": method for method in runs_of(notebook)}
    there = {name: load(series / name) for name in wanted if (series / name / FILE_NAME).is_file()}
    own = [name for name, record in there.items() if not (record.note or "").startswith(ORIGIN)]
    missing = {name: method for name, method in wanted.items() if name not in there}
    if own and not missing:
        raise CatchUpError(
            f"there is a finished run of your own in {shown(series / own[0])}: nothing was replaced. To go on with the "
            "shipped one, move that folder away first"
        )
    series.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=series, prefix=".catch-up-") as temporary:
        if missing:
            _unpack(_archive(settings.profile, source, Path(temporary)), missing, settings, Path(temporary))
        for name in missing:
            if (series / name).exists():  # what an interrupted run left: it has no record, but perhaps checkpoints
                aside = series / f"{name}-interrupted-{now().replace(':', '')}"
                os.replace(series / name, aside)
                print(f"{name}: what an interrupted run had left is now in {shown(aside)}")
            os.replace(Path(temporary) / name, series / name)
    for name in wanted:
        if name in own:
            print(f"{name}: your own run, kept")
        else:
            print(f"*** CATCH-UP: {name} was not trained here. {load(series / name).note} ***")
    devices = {r.device.get("name") for r in load_series(series) if r.seed == settings.seed and r.method != "base"}
    if len(devices) > 1:
        print(
            f"These runs come from {' and '.join(sorted(map(str, devices)))}, and 04_compare does not compare devices. To compare, take "
            "all runs from the archive into a folder of their own: runs_dir = 'runs/catch-up' here, in catch_up and in 04_compare."
        )


def _archive(profile: str, source: str | Path | None, scratch: Path) -> Path:
    """The archive as a local file; one behind an address is fetched first."""
    if str(source).startswith(("http://", "https://")):
        address = str(source) if str(source).endswith(".zip") else f"{str(source).rstrip('/')}/{archive_name(profile)}"
        try:
            with urllib.request.urlopen(address, timeout=20) as answer, open(scratch / "fetched.zip", "wb") as file:
                shutil.copyfileobj(answer, file)
        except OSError as error:
            raise CatchUpError(f"{address} could not be fetched ({error}); check the address and the network") from None
        return scratch / "fetched.zip"
    path = Path(source).expanduser() if source else models_folder()
    path = path / archive_name(profile) if path.is_dir() else path
    if not path.is_file():
        raise CatchUpError(
            f"there is no catch-up archive {shown(path)}: ask your instructor for its folder or address and give it as "
            'source; who has finished runs makes one with "make catch-up"'
        )
    return path


def _unpack(archive: Path, wanted: dict[str, str], settings: Settings, target: Path) -> None:
    """Write the wanted runs below ``target``: each file checked, each record marked."""
    try:
        with zipfile.ZipFile(archive) as packed:
            manifest = json.loads(packed.read(MANIFEST))
            _require_same(manifest, wanted, settings, archive)
            for run in wanted:
                for name, expected in manifest["runs"][run].items():
                    path = PurePosixPath(name)
                    if path.is_absolute() or ".." in path.parts or "\\" in name or path.suffix not in SUFFIXES:
                        raise CatchUpError(
                            f"{archive.name} names a file that no run has ({name!r}): it was not unpacked"
                        )
                    file = target / run / path
                    file.parent.mkdir(parents=True, exist_ok=True)
                    with packed.open(f"{run}/{name}") as content, open(file, "wb") as out:
                        shutil.copyfileobj(content, out)
                    if _sha256(file) != expected:
                        raise CatchUpError(
                            f"{archive.name} is damaged: the hash of {run}/{name} is not the one in its manifest"
                        )
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise CatchUpError(
            f"{archive.name} is damaged or no catch-up archive ({type(error).__name__}: {error}); fetch it again"
        ) from None
    except OSError as error:
        raise CatchUpError(
            f"{archive.name} could not be unpacked: {error.strerror}; nothing was put in place"
        ) from None
    for run, method in wanted.items():
        try:
            record = load(target / run)
        except RecordError as error:
            raise CatchUpError(f"{archive.name}: {error}") from None
        if (record.method, record.seed, record.model.get("fingerprint")) != (method, settings.seed, manifest["base"]):
            raise CatchUpError(f"{archive.name}: the record in {run} is of another run than its folder says")
        for name in ("model", "data"):
            if record.settings.get(name) != getattr(settings, name):
                raise CatchUpError(
                    f"the shipped {run} has {name} = {record.settings.get(name)!r}, your settings say {getattr(settings, name)!r}"
                )
        record.note = f"{ORIGIN}; trained on {record.device.get('name')}, finished {record.finished}"
        record.save(target / run)


def _require_same(manifest: dict, wanted: dict[str, str], settings: Settings, archive: Path) -> None:
    """The archive is of this profile, holds the wanted runs, and was made with the base model that is here."""
    if manifest["profile"] != settings.profile:
        raise CatchUpError(f"{archive.name} is of the profile {manifest['profile']!r}, yours is {settings.profile!r}")
    if absent := wanted.keys() - manifest["runs"].keys():
        raise CatchUpError(f"{archive.name} holds {', '.join(manifest['runs'])}, but not {', '.join(sorted(absent))}")
    here = resolve(settings).fingerprint
    if manifest["base"] != here:
        raise CatchUpError(
            f"{archive.name} was made on another base model (weights {manifest['base']}, yours are {here}): its adapters "
            "would load here and answer nonsense"
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="make catch-up", description="Pack finished runs for those who lost theirs.")
    parser.add_argument("--profile", default="small")
    parser.add_argument("--methods", default="base lora full", help="whose runs; a full model is as large as its base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--to", type=Path, default=None, help="a folder; default: that of the models")
    given = parser.parse_args()
    try:
        settings = settings_for(given.profile, seed=given.seed, runs_dir=given.runs_dir)
        archive = pack(settings, given.methods.split(), given.to or models_folder())
    except (CatchUpError, ModelError, SettingsError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{shown(archive)}  {archive.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
