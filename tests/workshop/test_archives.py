"""Archives that are damaged, encrypted, compressed, too large or of something else put nothing in place."""

import json
import zipfile
from pathlib import Path
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

    def refused(words, change=None, spoil=None, more=None, **options):
        with zipfile.ZipFile(whole / name) as old, zipfile.ZipFile(tmp_path / name, "w", **options) as new:
            for member in old.namelist():
                content = change(member, old.read(member)) if change else old.read(member)
                if content is not None:
                    new.writestr(member, content)
            if more:
                new.writestr(more, "{}")
        if spoil:
            (tmp_path / name).write_bytes(spoil((tmp_path / name).read_bytes()))
        with pytest.raises(CatchUpError, match=words) as error:
            catch_up("02_lora_train", seat, tmp_path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 600
        assert list(seat.series_folder.iterdir()) == []

    return refused


def in_record(edit):
    """A change that edits the record."""

    def change(name, content):
        if name != "record.json":
            return content
        value = json.loads(content)
        edit(value)
        return json.dumps(value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, c: None if n == WEIGHTS else c, "is damaged or not a catch-up archive .* fetch it again"),
        (lambda n, c: c + b"more" if n == WEIGHTS else c, f"{WEIGHTS}' is missing or has another size"),
        (lambda n, c: None if n == "record.json" else c, "is damaged or not a catch-up archive"),
        (lambda n, c: "{" if n == "record.json" else c, "lora-s0/record.json is damaged"),
        (lambda n, c: "[]" if n == "record.json" else c, "should hold a JSON object"),
        (lambda n, c: "[" * 10_000 if n == "record.json" else c, "nested too deeply"),
        (in_record(lambda r: r.update(profile="small")), "holds small lora 0, and tiny lora 0 is wanted"),
        (in_record(lambda r: r.update(method="full")), "holds tiny full 0"),
        (in_record(lambda r: r.update(seed=7)), "holds tiny lora 7"),
        (in_record(lambda r: r["model"].update(fingerprint="0123456789abcdef")), "another base model"),
        (in_record(lambda r: r["model"].pop("fingerprint")), "another base model"),
        (in_record(lambda r: r["files"].clear()), "lists no weights"),
        (in_record(lambda r: r["files"].update({WEIGHTS: 7})), "has another size than the record says"),
        (in_record(lambda r: r["files"].update({"adapter/more.safetensors": 7})), "more.safetensors"),
        (in_record(lambda r: r.update(settings=None)), "lora-s0/record.json: settings should be"),
        (in_record(lambda r: r.update(status="started")), "did not finish"),
    ],
)
def test_a_damaged_archive_and_a_record_without_its_adapter_leave_nothing(refused, change, words):
    refused(words, change)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: raw[:-2000], "fetch it again"),
        (lambda raw: b"", "fetch it again"),
        (lambda raw: b"PK\x05\x06" + bytes(18), "fetch it again"),
        (lambda raw: raw[: len(raw) // 2] + bytes(2000) + raw[len(raw) // 2 + 2000 :], "is damaged"),
        (lambda raw: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :], "Bad CRC-32"),
        (
            lambda raw: raw.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
            "encrypted|fetch",
        ),
    ],
    ids=["truncated", "empty", "no entries", "a hole", "one bit", "encrypted"],
)
def test_a_file_that_is_no_whole_zip_is_one_sentence(refused, spoil, words):
    refused(words, spoil=spoil)


def test_what_is_compressed_could_grow_and_is_refused_before_it_is_written(refused, monkeypatch):
    def bomb(name, content):
        return bytes(50_000_000) if name == WEIGHTS else content

    written, extract = [], zipfile.ZipFile.extract
    monkeypatch.setattr(zipfile.ZipFile, "extract", lambda *given: written.append(given) or extract(*given))
    refused("lora-s0.zip is compressed or encrypted", bomb, compression=zipfile.ZIP_DEFLATED)
    assert not [path for *_, path in written if path.name == "lora-s0"]


def test_what_claims_to_be_larger_than_the_archive_or_the_disk_is_refused(refused, monkeypatch):
    real = zipfile.ZipFile.infolist

    def claims(archive):
        infos = real(archive)
        for info in infos:
            info.file_size += 3 * 10**9 * (info.filename == WEIGHTS)
        return infos

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "infolist", claims)
        refused("claims to hold more than its own size")
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    refused("takes 0.0 GB and the disk has 0.0 GB free")


@pytest.mark.parametrize("name", ["../../evil.json", "/tmp/evil.json", "adapter/../evil.json"])
def test_no_file_is_written_outside_its_run(refused, tmp_path, name):
    outside = Path("/tmp/evil.json")
    assert not outside.exists()
    refused("evil.json' is missing", in_record(lambda r: r["files"].update({name: 2})), more=name)
    assert not list(tmp_path.rglob("evil*")) and not outside.exists()


@pytest.mark.parametrize("name", ["evil.py", "a/" * 500 + "evil.json", "adapter/adapter_config.jsonx", "weights.pt"])
def test_what_is_no_file_of_a_run_is_not_unpacked(refused, tmp_path, name):
    """Neither what could be executed nor what lies deep or has a mangled name; a run without it would count as lost."""
    refused("is no file of a run", in_record(lambda r: r["files"].update({name: 2})), more=name)
    assert not list(tmp_path.rglob("*evil*"))
