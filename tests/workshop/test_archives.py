"""Archives that are damaged, encrypted, compressed, too large or of something else put nothing in place."""

import json
import zipfile
from types import SimpleNamespace

from helpers.settings import settings_for
from helpers.workshop import CatchUpError, archives, catch_up, pack
from helpers.workshop.archives import archive_name

import pytest

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory):
    """The archives of base and lora in a folder."""
    folder = tmp_path_factory.mktemp("whole")
    for method in ("base", "lora"):
        pack(runs.settings("lora"), method, folder)
    return folder


@pytest.fixture
def refused(whole, tmp_path):
    """``refused(words, change)``: the archive of lora, each member through ``change(name, bytes)``, is not put in place."""
    seat, name = settings_for("tiny", runs_dir=str(tmp_path / "runs")), archive_name("tiny", "lora-s0")
    (tmp_path / archive_name("tiny", "base-s0")).symlink_to(whole / archive_name("tiny", "base-s0"))

    def refused(words, change=None, spoil=None, **options):
        with zipfile.ZipFile(whole / name) as old, zipfile.ZipFile(tmp_path / name, "w", **options) as new:
            for member in old.namelist():
                content = change(member, old.read(member)) if change else old.read(member)
                if content is not None:
                    new.writestr(member, content)
        if spoil:
            (tmp_path / name).write_bytes(spoil((tmp_path / name).read_bytes()))
        with pytest.raises(CatchUpError, match=words) as error:
            catch_up("02_lora_train", seat, tmp_path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600
        assert list(seat.series_folder.iterdir()) == []

    return refused


def in_json(member, edit):
    """A change that edits one JSON member."""

    def change(name, content):
        if name != member:
            return content
        value = json.loads(content)
        edit(value)
        return json.dumps(value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, c: c[:-1] + bytes([c[-1] ^ 1]) if n == WEIGHTS else c, f"the hash of {WEIGHTS} is not the one"),
        (lambda n, c: None if n == WEIGHTS else c, "is damaged or not"),
        (lambda n, c: None if n == "manifest.json" else c, "is damaged or not a catch-up archive"),
        (lambda n, c: "{" if n == "manifest.json" else c, "the manifest of .* is damaged"),
        (lambda n, c: "[]" if n == "manifest.json" else c, "should hold a JSON object"),
        (lambda n, c: "[" * 10_000 if n == "manifest.json" else c, "nested too deeply"),
        (lambda n, c: b" " * 2_000_000 + c if n == "manifest.json" else c, "manifest is compressed or too large"),
        (in_json("manifest.json", lambda m: m.update(files=[])), "files should be of type dict"),
        (in_json("manifest.json", lambda m: m.pop("base")), "lacks base"),
        (in_json("manifest.json", lambda m: m.update(base="0123456789abcdef")), "another base model"),
        (
            in_json("manifest.json", lambda m: m.update(profile="small")),
            "holds small lora-s0, and tiny lora-s0 is wanted",
        ),
        (in_json("manifest.json", lambda m: m.update(run="full-s0")), "holds tiny full-s0"),
        (in_json("manifest.json", lambda m: m["files"].pop(WEIGHTS)), f"{WEIGHTS} is missing"),
        (in_json("manifest.json", lambda m: m["files"].update({WEIGHTS: 5})), "the hash of"),
    ],
)
def test_a_damaged_archive_leaves_nothing(refused, change, words):
    refused(words, change)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: raw[:-2000], "fetch it again"),
        (lambda raw: b"", "fetch it again"),
        (lambda raw: b"PK\x05\x06" + bytes(18), "fetch it again"),
        (lambda raw: raw[: len(raw) // 2] + bytes(2000) + raw[len(raw) // 2 + 2000 :], "is damaged"),
        (
            lambda raw: raw.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
            "encrypted|fetch",
        ),
    ],
    ids=["truncated", "empty", "no entries", "a hole", "encrypted"],
)
def test_a_file_that_is_no_whole_zip_is_one_sentence(refused, spoil, words):
    refused(words, spoil=spoil)


def test_what_is_compressed_could_grow_and_is_refused_before_it_is_written(refused, monkeypatch):
    def bomb(name, content):
        return bytes(50_000_000) if name == WEIGHTS else content

    written, copy = [], archives.shutil.copyfileobj
    monkeypatch.setattr(archives.shutil, "copyfileobj", lambda a, b: written.append(copy(a, b) or b.tell()))
    refused("lora-s0.zip is not a catch-up archive: its manifest is compressed", bomb, compression=zipfile.ZIP_DEFLATED)
    assert sum(written) < 1_000_000

    def stored_but_for_the_weights(archive, info, *content, **options):
        name = getattr(info, "filename", info)
        return write(
            archive, info, *content, compress_type=zipfile.ZIP_DEFLATED if name == WEIGHTS else zipfile.ZIP_STORED
        )

    write = zipfile.ZipFile.writestr
    monkeypatch.setattr(zipfile.ZipFile, "writestr", stored_but_for_the_weights)
    refused("lora-s0.zip is compressed or encrypted", bomb)
    assert sum(written) < 1_000_000


def test_a_declared_size_beyond_the_archive_or_the_disk_is_refused(refused, monkeypatch):
    real = zipfile.ZipFile.getinfo

    def claims(archive, name):
        info = real(archive, name)
        info.file_size += 3 * 10**9 * (name == WEIGHTS)
        return info

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "getinfo", claims)
        refused("claims to hold more than its own size")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    refused("takes 0.0 GB and the disk has 0.0 GB free")


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.json",
        "/tmp/evil.json",
        "adapter/../../evil.json",
        "a\\evil.json",
        "evil.py",
        "a/" * 500 + "evil.json",
    ],
)
def test_no_file_is_written_outside_its_run(refused, tmp_path, name):
    refused("names a file that no run has", in_json("manifest.json", lambda m: m["files"].update({name: "0" * 64})))
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda r: r.update(method="full"), "of another run than its name says"),
        (lambda r: r.update(seed=7), "of another run"),
        (lambda r: r["files"].clear(), "lists no weights"),
        (lambda r: r["files"].update({WEIGHTS: 7}), "has another size than the record says"),
        (lambda r: r["files"].update({"adapter/more.safetensors": 7}), "adapter/more.safetensors is missing"),
        (lambda r: r.update(settings=None), "lora-s0/record.json: settings should be"),
        (lambda r: r.update(status="started"), "did not finish"),
    ],
)
def test_a_record_without_its_adapter_is_not_put_in_place(whole, refused, edit, words):
    """The manifest vouches for the edited record, so that it is the record itself that is judged."""
    import hashlib

    with zipfile.ZipFile(whole / archive_name("tiny", "lora-s0")) as archive:
        record, manifest = json.loads(archive.read("record.json")), json.loads(archive.read("manifest.json"))
    edit(record)
    text = json.dumps(record).encode()
    manifest["files"]["record.json"] = hashlib.sha256(text).hexdigest()
    new = {"record.json": text, "manifest.json": json.dumps(manifest)}
    refused(words, lambda name, content: new.get(name, content))
