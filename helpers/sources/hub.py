"""Fetching models and data sets from the Hugging Face hub: once, and from then on without a single request."""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.utils import filter_repo_objects

SECONDS = 10  # to wait for the first answer
WANTED = {  # no pickles, no code
    "model": ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"],
    "dataset": ["*.parquet", "*.jsonl", "*.json", "*.csv", "README.md"],
}
UNWANTED = ["original/*", "consolidated*"]  # the same weights a second time


class HubError(RuntimeError):
    """Something on the hub that cannot be had; the message gives the cause and the next step."""


def fetch(kind: str, name: str, revision: str | None = None) -> Path:
    """The folder of a model or a "dataset" in the hub's cache, downloaded if it is not there whole.

    ``revision`` is a commit of 40 digits; None stands for what the branch ``main`` was when it was first fetched.
    """
    patterns = {"allow_patterns": WANTED[kind], "ignore_patterns": UNWANTED}
    options = {"repo_type": kind, "revision": revision, "etag_timeout": SECONDS} | patterns
    try:
        return Path(snapshot_download(name, local_files_only=True, **options))
    except errors.HFValidationError:
        raise HubError(f"{name!r} is neither a file or folder here nor a name of the hub, as in owner/name") from None
    except errors.LocalEntryNotFoundError:
        pass
    try:
        _check_reachable(kind, name, revision, patterns)
        folder = Path(snapshot_download(name, **options))
    except Exception as error:
        raise error if isinstance(error, HubError) else HubError(explain(error, kind, name, revision)) from None
    if revision is None:
        print(f"{name}: no revision is pinned, so this is its latest, {folder.name}; the record keeps it")
    return folder


def _check_reachable(kind: str, name: str, revision: str | None, patterns: dict) -> None:
    """Ask once for the repository and one of its files, since the client itself would try for minutes; look at the disk."""
    info = HfApi().repo_info(name, repo_type=kind, revision=revision, files_metadata=True, timeout=SECONDS)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings}
    wanted = list(filter_repo_objects(sizes, **patterns))
    if not wanted:
        raise HubError(f"{name} holds none of {', '.join(WANTED[kind])}: other formats are not loaded")
    get_hf_file_metadata(hf_hub_url(name, wanted[0], repo_type=kind, revision=info.sha), timeout=SECONDS)
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    needed, free = sum(sizes[file] for file in wanted) / 1e9, shutil.disk_usage(cache).free / 1e9
    if needed > free:
        disk = f"the disk of {cache} has {free:.1f} GB free: make room, or set HF_HOME to a folder on another disk"
        raise HubError(f"{name} takes {needed:.1f} GB and {disk}")


def explain(error: Exception, kind: str, name: str, revision: str | None = None) -> str:
    """Cause and next step of what the hub's client raised when it was asked for something."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms on {page}, then log in with `hf auth login` and run this again"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r}: take the 40 digits of a commit from {page}/commits/main"
    if isinstance(error, errors.RepositoryNotFoundError):
        private = "if it is private, log in with `hf auth login` (`hf auth whoami` shows your account)"
        return f"the hub has no {kind} {name!r}, or it is private: check the spelling on {page}; {private}"
    if status := getattr(getattr(error, "response", None), "status_code", None):
        remedies = {
            401: "it refuses your token; log in again with `hf auth login`, or unset HF_TOKEN if that is old",
            429: "it limits requests from here; wait some minutes, or log in with `hf auth login`",
        }
        remedy = remedies.get(status, "that is on its side; try again later (https://status.huggingface.co)")
        return f"the hub answers {status} for {name}: {remedy}"
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"asking {constants.ENDPOINT} for {name} failed ({reason}): check network, proxy and free space"
