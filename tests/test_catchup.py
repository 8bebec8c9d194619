"""Catch-up: shipped runs arrive whole, marked and only where nothing of the learner's own stands."""

import json
import shutil
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from helpers import records
from helpers.models import load_trained
from helpers.settings import settings_for
from helpers.workshop.catch_up import ORIGIN, CatchUpError, archive_name, catch_up, pack, runs_of

import pytest


@pytest.fixture(scope="module")
def archive(runs, tmp_path_factory):
    return pack(runs.settings("lora"), ["base", "lora", "full"], tmp_path_factory.mktemp("archive"))


@pytest.fixture
def seat(tmp_path):
    return settings_for("tiny", runs_dir=str(tmp_path / "runs"))


def changed(archive, folder, change):
    """A copy of the archive: ``change(name, bytes)`` gives the new bytes of a member, or None to leave it out."""
    target = folder / archive.name
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if (content := change(name, old.read(name))) is not None:
                new.writestr(name, content)
    return target


def manifest_with(archive, folder, edit):
    def change(name, content):
        if name != "manifest.json":
            return content
        manifest = json.loads(content)
        edit(manifest)
        return json.dumps(manifest)

    return changed(archive, folder, change)


def test_a_lost_run_is_put_in_place_and_says_so(archive, seat, runs, capsys):
    catch_up("02_lora_train", seat, archive)
    said = capsys.readouterr().out
    assert "*** CATCH-UP: lora-s0 was not trained here." in said and "base-s0" in said
    lora = records.load(seat.folder)
    assert lora.note.startswith(ORIGIN) and lora.evaluation == runs.lora.record.evaluation
    assert sorted(p.name for p in seat.series_folder.iterdir()) == ["base-s0", "lora-s0"]
    assert load_trained(seat).peft_config["default"].r == seat.rank
    catch_up("02_lora_train", seat, archive)  # run again: the same words, nothing changes
    assert capsys.readouterr().out == said
    catch_up("03_full_train", seat, archive.parent)
    assert (seat.series_folder / "full-s0" / "model" / "config.json").is_file()
    with pytest.raises(CatchUpError, match="is itself a catch-up"):
        pack(seat, ["lora"], archive.parent)


def test_a_run_of_ones_own_is_never_replaced(archive, seat, runs, capsys):
    shutil.copytree(runs.lora.folder, seat.folder)
    before = (seat.folder / "record.json").read_bytes()
    catch_up("02_lora_train", seat, archive)  # the base is missing, the adapter is not
    assert "lora-s0: your own run, kept" in capsys.readouterr().out
    assert (seat.folder / "record.json").read_bytes() == before
    shutil.copytree(runs.full.folder, seat.series_folder / "full-s0")
    with pytest.raises(CatchUpError, match="finished run of your own in .*full-s0: nothing was replaced"):
        catch_up("03_full_train", seat, archive)


def test_runs_of_two_devices_are_said_to_be_no_comparison(archive, seat, runs, capsys):
    own = records.load(runs.full.folder)
    own.device |= {"name": "a card of my own"}
    own.save(seat.series_folder / "full-s0")
    catch_up("02_lora_train", seat, archive)
    assert "a card of my own, and 04_compare does not compare devices" in capsys.readouterr().out


def test_what_an_interrupted_run_left_is_moved_aside(archive, seat, capsys):
    (seat.folder / "checkpoints").mkdir(parents=True)
    catch_up("02_lora_train", seat, archive)
    assert not (seat.folder / "checkpoints").exists() and (seat.folder / "record.json").is_file()
    assert len(list(seat.series_folder.glob("lora-s0-interrupted-*/checkpoints"))) == 1
    assert "what an interrupted run had left is now in" in capsys.readouterr().out


def flip(name, content):
    return (
        content[:-1] + bytes([content[-1] ^ 1])
        if name.endswith("lora-s0/adapter/adapter_model.safetensors")
        else content
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip, "the hash of lora-s0/adapter/adapter_model.safetensors is not the one"),
        (lambda name, content: None if name.endswith("adapter_model.safetensors") else content, "is damaged or no"),
        (lambda name, content: None if name == "manifest.json" else content, "is damaged or no catch-up archive"),
        (lambda name, content: "{" if name == "manifest.json" else content, "is damaged or no catch-up archive"),
    ],
)
def test_a_damaged_archive_leaves_nothing(archive, seat, tmp_path, change, words):
    with pytest.raises(CatchUpError, match=words):
        catch_up("02_lora_train", seat, changed(archive, tmp_path, change))
    assert list(seat.series_folder.iterdir()) == []


def test_a_truncated_archive_is_damaged(archive, seat, tmp_path):
    cut = tmp_path / archive.name
    cut.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(CatchUpError, match="fetch it again"):
        catch_up("02_lora_train", seat, cut)


@pytest.mark.parametrize(
    "name", ["../../evil.json", "/tmp/evil.json", "adapter/../../evil.json", "a\\evil.json", "evil.py"]
)
def test_no_file_is_written_outside_its_run(archive, seat, tmp_path, name):
    bad = manifest_with(archive, tmp_path, lambda m: m["runs"]["lora-s0"].update({name: "0" * 64}))
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(f"lora-s0/{name}", "{}")
    with pytest.raises(CatchUpError, match="names a file that no run has"):
        catch_up("02_lora_train", seat, bad)
    assert not list(tmp_path.rglob("evil*")) and list(seat.series_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.update(base="0123456789abcdef"), "another base model"),
        (lambda m: m.update(profile="small"), "of the profile 'small', yours is 'tiny'"),
        (lambda m: m["runs"].pop("lora-s0"), "but not lora-s0"),
        (lambda m: m["runs"].update({"lora-s0": m["runs"]["base-s0"]}), "is damaged or no|is of another run|hash"),
    ],
)
def test_another_base_profile_or_run_is_refused(archive, seat, tmp_path, edit, words):
    with pytest.raises(CatchUpError, match=words):
        catch_up("02_lora_train", seat, manifest_with(archive, tmp_path, edit))


def test_other_data_than_ones_own_is_refused(archive, seat):
    with pytest.raises(CatchUpError, match="the shipped base-s0 has data = 'bundled', your settings say 'mine.jsonl'"):
        catch_up("02_lora_train", seat.change(data="mine.jsonl"), archive)


def test_it_comes_over_the_network_of_the_room(archive, seat, tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=archive.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(CatchUpError, match="could not be fetched"):
            catch_up("02_lora_train", seat, f"{address}/nothing.zip")
        catch_up("02_lora_train", seat, address)
        server.shutdown()
    assert records.load(seat.folder).note.startswith(ORIGIN)


def test_where_no_archive_is_the_learner_hears_whom_to_ask(seat, tmp_path, monkeypatch):
    with pytest.raises(CatchUpError, match=f"no catch-up archive .*{archive_name('tiny')}: ask your instructor"):
        catch_up("02_lora_train", seat, tmp_path)
    with pytest.raises(CatchUpError, match="leaves a run"):
        runs_of("04_compare")
    with pytest.raises(CatchUpError, match="run the series"):
        pack(seat, ["lora"], tmp_path)
