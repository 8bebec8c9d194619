"""A small stand-in for the Hugging Face hub: serves a folder of repositories, takes pushes, and fails on demand.

The folder holds ``models/<owner>/<name>/`` and ``datasets/<owner>/<name>/``. As on the hub, large kinds of files are
answered with a redirect to another origin, and each repository has one branch, ``main``, whose commit is 40 digits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, READ_TOKEN = "hf_" + "x" * 34, "hf_" + "r" * 34
LARGE = (".safetensors", ".parquet", ".bin", ".gguf")  # kept outside git on the hub, named by their sha256
FAULTS = ("gated", "absent", "limited", "down", "silent", "slow")


class Hub:
    """Use as a context manager. ``requests`` lists (method, path, status), status None while silent.

    Args:
        folder: of the repositories; pushes write into it.
    """

    def __init__(self, folder: Path):
        self.folder, self.requests = Path(folder), []
        self.faults: dict[str, str] = {}  # "owner/name", or "*" for every repository: one of FAULTS
        self.commits: dict[str, str] = {}  # "owner/name" -> the commit to answer with, in place of the computed one
        self.private: dict[str, bool] = {}  # of repositories that were made by a push
        self.stopped = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables that make a new process use this hub and an own cache."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def patch(self, monkeypatch, cache: Path) -> None:
        """Make the present process, where huggingface_hub is imported already, use this hub and an own cache."""
        use(monkeypatch, self.url, cache)

    def commit(self, kind: str, name: str) -> str:
        """The commit of a repository's branch: the one given, or sha1 over its paths and contents."""
        if name in self.commits:
            return self.commits[name]
        digest = hashlib.sha1()
        for path, raw in self.files(kind, name).items():
            digest.update(path.encode() + b"\0" + raw)
        return digest.hexdigest()

    def files(self, kind: str, name: str) -> dict[str, bytes]:
        """Contents by path inside a repository."""
        root = self.folder / kind / name
        return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def use(monkeypatch, url: str, cache: Path) -> None:
    """Point the imported huggingface_hub and datasets at ``url``, with an empty cache."""
    import datasets
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
    close_session()  # a client that was made while offline refuses every request


def _entry(path: str, raw: bytes) -> dict:
    """One file as the hub's tree lists it."""
    entry = {"type": "file", "path": path, "size": len(raw), "oid": _etag("x", raw)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": _etag(path, raw), "size": len(raw), "pointerSize": 130}
    return entry


def _etag(path: str, raw: bytes) -> str:
    if path.endswith(LARGE):
        return hashlib.sha256(raw).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/blobs/"):  # the other origin, where the redirects of large files lead
            _, _, kind, owner, name, inner = path.split("/", 5)
            return self.send_file(self.hub.files(kind, f"{owner}/{name}").get(inner, b""), {})
        if path == "/api/whoami-v2":
            if not self.headers.get("Authorization"):
                return self.answer(401, {"error": "Invalid username or password."})
            return self.answer(200, {"name": "tester", "type": "user", "orgs": [], "auth": {"type": "access_token"}})
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path):
            kind, name, what, revision, inner = found.groups()
            if (files := self.repository(kind, name, revision, api=True)) is not None:
                self.list_tree(files, inner or "") if what == "tree" else self.info(kind, name, files)
            return None
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, name = ("datasets" if found[1] else "models"), found[2]
            if (files := self.repository(kind, name, found[3], api=False)) is not None:
                self.resolve(kind, name, files, found[4])
            return None
        return self.answer(404, {"error": "not found"})

    def do_POST(self):
        raw = self.body()
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/paths-info/([^/]+)", path):
            files = self.repository(found[1], found[2], found[3], api=True)
            wanted = parse_qs(raw.decode()).get("paths", [])
            return files is not None and self.answer(200, [_entry(p, files[p]) for p in wanted if p in files])
        if self.headers.get("Authorization") == f"Bearer {READ_TOKEN}":
            return self.answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(raw)
            name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
            kind = f"{asked.get('type', 'model')}s"
            folder = self.hub.folder / kind / name
            if folder.is_dir():
                return self.answer(409, {"error": "You already created this repo", "url": f"{self.hub.url}/{name}"})
            folder.mkdir(parents=True)
            self.hub.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return self.answer(200, {"url": f"{self.hub.url}/{'datasets/' * (kind == 'datasets')}{name}", "name": name})
        found = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit)/([^/]+)", path)
        if not found or not (self.hub.folder / found[1] / found[2]).is_dir():
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        kind, name, what, _ = found.groups()
        if what == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(raw)["files"]
            ]
            return self.answer(200, {"files": files})
        for line in raw.decode().splitlines():
            step = json.loads(line)
            target = self.hub.folder / kind / name / step["value"].get("path", "")
            if step["key"] == "file":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(step["value"]["content"]))
            elif step["key"] == "deletedFile":
                target.unlink()
        oid = self.hub.commit(kind, name)
        return self.answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def repository(self, kind: str, name: str, revision: str | None, api: bool) -> dict[str, bytes] | None:
        """The files asked for; None where the answer was a fault, which has been sent."""
        fault, files = self.hub.faults.get(name) or self.hub.faults.get("*"), self.hub.files(kind, name)
        signed_in = bool(self.headers.get("Authorization"))
        if fault == "silent":
            self.note(None)
            self.hub.stopped.wait()
            self.close_connection = True
        elif fault == "limited":
            self.answer(429, {"error": "Too Many Requests"}, {"Retry-After": "60"})
        elif fault == "down":
            self.answer(503, {"error": "Service Unavailable"})
        elif fault == "gated" and not api:
            words = f"Access to {kind[:-1]} {name} is restricted."
            self.answer(403 if signed_in else 401, {"error": words}, {"X-Error-Code": "GatedRepo"})
        elif fault == "absent" or not (self.hub.folder / kind / name).is_dir():
            self.answer(404 if signed_in else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif revision not in (None, "main", self.hub.commit(kind, name)):
            self.answer(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        else:
            self.slow = fault == "slow"
            return files
        return None

    def info(self, kind: str, name: str, files: dict[str, bytes]) -> None:
        gated = "manual" if "gated" in (self.hub.faults.get(name), self.hub.faults.get("*")) else False
        self.answer(200, {
            "id": name, "sha": self.hub.commit(kind, name), "gated": gated, "tags": [],
            "private": self.hub.private.get(name, False), "downloads": 0,
            "siblings": [{"rfilename": path, "size": len(raw)} for path, raw in files.items()],
        })  # fmt: skip

    def list_tree(self, files: dict[str, bytes], inside: str) -> None:
        prefix, entries = f"{inside}/" if inside else "", {}
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        for path, raw in files.items():
            if path.startswith(prefix):
                folder, _, rest = path.removeprefix(prefix).partition("/")
                if rest:
                    entries[prefix + folder] = {
                        "type": "directory",
                        "path": prefix + folder,
                        "size": 0,
                        "oid": "0" * 40,
                    }
                if recursive or not rest:
                    entries[path] = _entry(path, raw)
        self.answer(200, list(entries.values()))

    def resolve(self, kind: str, name: str, files: dict[str, bytes], inner: str) -> None:
        commit = {"X-Repo-Commit": self.hub.commit(kind, name)}
        if inner not in files:
            return self.answer(404, {"error": "Entry not found"}, commit | {"X-Error-Code": "EntryNotFound"})
        etag = f'"{_etag(inner, files[inner])}"'
        if inner.endswith(LARGE):
            other = f"http://localhost:{self.hub.port}/blobs/{kind}/{name}/{inner}"
            size = str(len(files[inner]))
            return self.answer(302, {}, commit | {"Location": other, "X-Linked-Etag": etag, "X-Linked-Size": size})
        return self.send_file(files[inner], commit | {"ETag": etag})

    def send_file(self, raw: bytes, headers: dict[str, str]) -> None:
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) else 0
        if start:
            headers = headers | {"Content-Range": f"bytes {start}-{len(raw) - 1}/{len(raw)}"}
        self.send(206 if start else 200, raw[start:], headers | {"Accept-Ranges": "bytes"})

    def answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        said = {"X-Error-Message": content["error"]} if isinstance(content, dict) and "error" in content else {}
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json"} | said | (headers or {}))

    def send(self, status: int, raw: bytes, headers: dict[str, str]) -> None:
        self.note(status)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(raw))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            step = 1024 if getattr(self, "slow", False) else len(raw) or 1
            for at in range(0, len(raw), step):
                self.wfile.write(raw[at : at + step])
                if getattr(self, "slow", False) and self.hub.stopped.wait(0.05):
                    return

    def note(self, status: int | None) -> None:
        self.hub.requests.append((self.command, self.path, status))

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        raw = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            raw += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return raw
