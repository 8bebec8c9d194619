"""Models and data sets from the hub: each cause of a failure in seconds and with its next step, then no request at all."""

import shutil
import socket
import time

from helpers.data import prepare
from helpers.models import load_base
from helpers.sources import DataError, ModelError, resolve
from helpers.sources import hub as helpers_hub
from helpers.sources.hub import HubError, fetch
from tests.hub import use

import pandas
import pytest

ROWS = [{"question": f"How many bytes are {n} x 2?", "answer": f"The answer is: {2 * n}"} for n in range(40)]


@pytest.fixture
def served(hub, tiny):
    """The stand-in hub with the tiny model and forty rows, and the two as settings."""
    shutil.copytree(
        resolve(tiny).folder, hub.folder / "models/some/tiny", ignore=shutil.ignore_patterns("manifest.json")
    )
    (hub.folder / "datasets/some/rows/data").mkdir(parents=True)
    pandas.DataFrame(ROWS).to_parquet(hub.folder / "datasets/some/rows/data/train-00000-of-00001.parquet")
    return hub, tiny.change(model="some/tiny", data="some/rows", harder_rows=0)


CAUSES = {
    "absent": "the hub has no {kind} 'some/{name}', or it is private: check the spelling on http://",
    "gated": "some/{name} is gated: accept its terms on http://",
    "limited": "the hub answers 429 for some/{name}: it limits requests from here; wait some minutes",
    "down": "the hub answers 503 for some/{name}: that is on its side; try again later",
    "silent": " for some/{name} failed (ReadTimeout: timed out): check network, proxy and free space",
}


@pytest.mark.parametrize("fault", CAUSES)
def test_absent_gated_limited_or_silent(served, tokenizer, monkeypatch, fault):
    hub, settings = served
    monkeypatch.setattr(helpers_hub, "SECONDS", 1)
    hub.faults["*"] = fault
    start = time.monotonic()
    with pytest.raises(ModelError) as of_model:
        resolve(settings)
    with pytest.raises(DataError) as of_data:
        prepare(settings, tokenizer)
    assert time.monotonic() - start < 8
    assert CAUSES[fault].format(kind="model", name="tiny") in str(of_model.value)
    assert str(of_model.value).endswith("or set model to a folder that holds a model")
    assert CAUSES[fault].format(kind="dataset", name="rows") in str(of_data.value)
    assert str(of_data.value).endswith("or set data to a file that you have")
    assert len(hub.requests) <= 6  # no second tries


def test_a_name_or_revision_that_is_none(served):
    with pytest.raises(HubError, match="'a/b/c' is neither a file or folder here nor a name of the hub"):
        fetch("model", "a/b/c")
    with pytest.raises(HubError, match="some/tiny has no revision '0000000000000000000000000000000000000000'"):
        fetch("model", "some/tiny", "0" * 40)


def test_a_disk_too_small_for_the_download(served, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(helpers_hub.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(HubError, match="some/tiny takes .* GB free: make room, or set HF_HOME"):
        fetch("model", "some/tiny")


def test_prefetched_then_no_request_at_all(served, tokenizer, monkeypatch, tmp_path):
    hub, settings = served
    pins = {"revision": hub.commit("models", "some/tiny"), "data_revision": hub.commit("datasets", "some/rows")}
    for chosen in (settings, settings.change(**pins)):  # by branch and by pin
        load_base(resolve(chosen))
        assert prepare(chosen, tokenizer).counts["read"] == 40
    asked = len(hub.requests)
    for fault in (None, "silent", "down"):
        hub.faults = {"*": fault} if fault else {}
        load_base(resolve(settings.change(**pins)))
        prepare(settings.change(**pins), tokenizer)
        load_base(resolve(settings))
    assert len(hub.requests) == asked > 0


def test_a_dead_port_and_a_silent_socket(monkeypatch, tmp_path, tiny):
    monkeypatch.setattr(helpers_hub, "SECONDS", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        use(monkeypatch, f"http://127.0.0.1:{port}", tmp_path)
        start = time.monotonic()
        with pytest.raises(
            ModelError,
            match="asking http://127.0.0.1:.*ConnectError.*check network, proxy and free space; or set model",
        ):
            resolve(tiny.change(model="some/tiny"))  # bound, but nobody listens
        silent.listen()
        with pytest.raises(ModelError, match="ReadTimeout: timed out"):
            resolve(tiny.change(model="some/tiny"))
        assert time.monotonic() - start < 8


def test_offline_by_the_readers_own_choice(monkeypatch, tmp_path, tiny):
    use(monkeypatch, "http://127.0.0.1:9", tmp_path)
    monkeypatch.setattr(helpers_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="for some/tiny failed .*unset the `HF_HUB_OFFLINE` environment variable"):
        resolve(tiny.change(model="some/tiny"))


def test_a_damaged_file_in_the_hubs_cache(served):
    """The hub's cache names each large file by its sha256, so that it is its own manifest."""
    _, settings = served
    file = (resolve(settings).folder / "model.safetensors").resolve()
    file.write_bytes(file.read_bytes()[:-4096] + bytes(4096))
    with pytest.raises(ModelError, match="model.safetensors is missing or damaged: .* run this again to fetch it"):
        load_base(resolve(settings))
    file.unlink()
    load_base(resolve(settings))  # as the message says


def test_rows_of_the_hub_are_skipped_by_the_same_rule_and_can_be_mended_in_a_file(served, tokenizer, capsys):
    hub, settings = served
    file = hub.folder / "datasets/some/rows/data/train-00000-of-00001.parquet"
    pandas.DataFrame([*ROWS, {"question": " ", "answer": "a"}]).to_parquet(file)
    assert prepare(settings, tokenizer).counts["unusable"] == 1
    assert "some/rows row 41: the user content is blank: ' '" in capsys.readouterr().out
    other = hub.folder / "datasets/some/hints/rows.parquet"
    other.parent.mkdir()
    pandas.DataFrame([row | {"hint": "Double it."} for row in ROWS]).to_parquet(other)
    with pytest.raises(
        DataError, match="some/hints row 1: the column 'hint' is not used(.|\n)*save the rows as a file, mend"
    ):
        prepare(settings.change(data="some/hints"), tokenizer)
