"""Catch-up: shipped runs arrive whole, marked, and only where nothing of your own stands."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from helpers import records
from helpers.models import load_trained
from helpers.settings import settings_for
from helpers.workshop import CatchUpError, catch_up, pack
from helpers.workshop.__main__ import main
from helpers.workshop.archives import ORIGIN, archive_name

import pytest


@pytest.fixture(scope="module")
def archives(runs, tmp_path_factory):
    """A folder with the archives of the three tiny runs."""
    folder = tmp_path_factory.mktemp("archives")
    for method in ("base", "lora", "full"):
        pack(runs.settings("lora"), method, folder)
    return folder


@pytest.fixture
def seat(tmp_path):
    return settings_for("tiny", runs_dir=str(tmp_path / "runs"))


def test_a_lost_run_is_put_in_place_and_says_so(archives, seat, runs, capsys):
    catch_up("02_lora_train", seat, archives)
    said = capsys.readouterr().out
    assert "*** CATCH-UP: lora-s0 was not trained here." in said and "base-s0" in said
    lora = records.load(seat.folder)
    assert lora.note.startswith(ORIGIN) and lora.evaluation == runs.lora.record.evaluation
    assert sorted(p.name for p in seat.series_folder.iterdir()) == ["base-s0", "lora-s0"]
    assert load_trained(seat).peft_config["default"].r == seat.rank
    catch_up("02_lora_train", seat, archives)  # run again: the same words, nothing changes
    assert capsys.readouterr().out == said
    catch_up("03_full_train", seat, archives)
    assert (seat.series_folder / "full-s0" / "model" / "config.json").is_file()
    with pytest.raises(CatchUpError, match="is itself a catch-up"):
        pack(seat, "lora", archives)


def test_each_run_has_an_archive_of_its_own_so_an_adapter_travels_alone(archives, seat, tmp_path):
    sizes = {path.name: path.stat().st_size for path in archives.iterdir()}
    assert sizes.keys() == {archive_name("tiny", f"{method}-s0") for method in ("base", "lora", "full")}
    for method in ("base", "lora"):
        shutil.copy(archives / archive_name("tiny", f"{method}-s0"), tmp_path)
    catch_up("02_lora_train", seat, tmp_path)  # without the archive of the full model
    assert (seat.folder / "adapter/adapter_model.safetensors").is_file()


def test_a_run_of_ones_own_is_never_replaced(archives, seat, runs, capsys):
    shutil.copytree(runs.lora.folder, seat.folder)
    before = (seat.folder / "record.json").read_bytes()
    catch_up("02_lora_train", seat, archives)  # the base is missing, the adapter is not
    assert "lora-s0: your own run, kept" in capsys.readouterr().out
    assert (seat.folder / "record.json").read_bytes() == before
    shutil.copytree(runs.full.folder, seat.series_folder / "full-s0")
    with pytest.raises(CatchUpError, match="finished run of your own in .*full-s0: nothing was replaced"):
        catch_up("03_full_train", seat, archives)


def an_interrupted_run(folder):
    (folder / "checkpoints").mkdir(parents=True)
    return lambda aside: (aside / "checkpoints").is_dir()


def a_link(folder):
    (elsewhere := folder.parent.parent / "elsewhere").mkdir(parents=True)
    (elsewhere / "diary.txt").write_text("mine")
    folder.parent.mkdir()
    folder.symlink_to(elsewhere)
    return lambda aside: aside.is_symlink() and (elsewhere / "diary.txt").read_text() == "mine"


def a_dangling_link(folder):
    folder.parent.mkdir(parents=True)
    folder.symlink_to(folder.parent / "nowhere")
    return lambda aside: aside.is_symlink() and os.readlink(aside).endswith("nowhere")


def a_file(folder):
    folder.parent.mkdir(parents=True)
    folder.write_text("mine")
    return lambda aside: aside.read_text() == "mine"


@pytest.mark.parametrize("make", [an_interrupted_run, a_link, a_dangling_link, a_file])
def test_what_stands_in_the_place_of_a_run_is_moved_aside_and_named(archives, seat, capsys, make):
    survives = make(seat.folder)
    catch_up("02_lora_train", seat, archives)
    assert (seat.folder / "record.json").is_file() and not seat.folder.is_symlink()
    (aside,) = seat.series_folder.glob("lora-s0-interrupted-*")
    assert survives(aside) and f"is now in {aside}" in capsys.readouterr().out


def test_other_data_than_ones_own_is_refused(archives, seat):
    with pytest.raises(
        CatchUpError, match="the run in catch-up-tiny-base-s0.zip has data = 'bundled', your settings say 'mine.jsonl'"
    ):
        catch_up("02_lora_train", seat.change(data="mine.jsonl"), archives)


def test_it_comes_over_the_network_of_the_room(archives, seat, tmp_path):
    """The command that `make catch-up` prints serves the archives."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(archives)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert server.poll() is None
            time.sleep(0.05)
        address = f"http://127.0.0.1:{port}"
        with pytest.raises(CatchUpError, match="catch-up-tiny-base-s0.zip could not be fetched .*404 File not"):
            catch_up("02_lora_train", seat, f"{address}/elsewhere/")
        catch_up("02_lora_train", seat, address)
    finally:
        server.terminate()
        log = server.communicate()[1]
    assert records.load(seat.folder).note.startswith(ORIGIN)
    assert "lora-s0.zip" in log and "full-s0.zip" not in log, "02 needs no full model"


def answer(kind: str, handler) -> None:
    """What goes wrong on the way: an error of the server, or an answer that is none."""
    if kind in ("401", "403", "500", "503"):
        return handler.send_error(int(kind))
    if kind == "no size":
        handler.send_response(200)
        handler.end_headers()
    elif kind in ("breaks off", "too large"):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000" if kind == "breaks off" else str(10**18))
        handler.end_headers()
        handler.wfile.write(b"PK")
    else:
        handler.wfile.write(b"SSH-2.0-OpenSSH\r\n")
    handler.close_connection = True


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("401", "401 Unauthorized"),
        ("403", "403 Forbidden"),
        ("500", "500 Internal"),
        ("503", "503 Service"),
        ("no size", "could not be fetched .*content-length"),
        ("breaks off", "received 2 bytes, expected 1000"),
        ("too large", "1,000,000,000,000,000,000 bytes and the disk has"),
        ("not http", "could not be fetched"),
    ],
)
def test_a_server_that_fails_is_one_sentence(seat, kind, words):
    fails = {"do_GET": lambda self: answer(kind, self), "log_message": lambda *_: None}
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Fails", (BaseHTTPRequestHandler,), fails)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(CatchUpError, match=words):
            catch_up("02_lora_train", seat, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert list(seat.series_folder.iterdir()) == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://[::1", "http://a b/", "http://", "http://x:port/"])
def test_an_address_that_is_none_is_one_sentence(seat, address):
    with pytest.raises(CatchUpError, match="could not be fetched"):
        catch_up("02_lora_train", seat, address)


def test_where_no_archive_is_the_learner_hears_whom_to_ask(seat, tmp_path):
    with pytest.raises(
        CatchUpError, match=f"no catch-up archive .*{archive_name('tiny', 'base-s0')}: ask your instructor"
    ):
        catch_up("02_lora_train", seat, tmp_path)
    with pytest.raises(CatchUpError, match="leaves a run"):
        catch_up("04_compare", seat)
    with pytest.raises(CatchUpError, match="run the series"):
        pack(seat, "lora", tmp_path)


def test_make_catch_up_packs_every_run_and_says_how_to_serve_them(runs, tmp_path, monkeypatch, capsys):
    def make_catch_up(methods: str) -> int:
        options = ["--methods", methods, "--profile", "tiny", "--runs-dir", str(runs.folder), "--to", str(tmp_path)]
        monkeypatch.setattr("sys.argv", ["helpers.workshop", "catch-up", *options])
        return main()

    assert make_catch_up("base lora") == 0
    assert {f.name for f in tmp_path.iterdir()} == {archive_name("tiny", f"{m}-s0") for m in ("base", "lora")}
    assert f"python -m http.server 8000 --directory {tmp_path}" in capsys.readouterr().out
    assert make_catch_up("dora") == 2
    assert capsys.readouterr().err.startswith("error: there is no finished run")
