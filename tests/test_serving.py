"""A merged model served, asked and stopped; and the faults that a reader meets."""

import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from helpers.inference import generate, load_saved, merge
from helpers.serving import ServingError, serving

import psutil
import pytest
from openai import OpenAI


@pytest.fixture(scope="module")
def merged(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "merged"
    merge(runs.settings("lora"), folder)
    return folder


def servers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "serve" in p.cmdline()]


def test_ten_clients_get_the_models_own_answers_and_the_server_is_gone_afterwards(merged, runs):
    model, tokenizer = load_saved(merged, "sdpa")
    prompts = [e.prompt for e in runs.data.test[:10]]
    own = [generate(model, tokenizer, [prompt], 8)[0] for prompt in prompts]
    with serving(merged) as address:
        assert address.startswith("http://127.0.0.1:") and len(servers()) == 1
        listening = {c.laddr.ip for c in servers()[0].net_connections() if c.status == psutil.CONN_LISTEN}
        assert listening == {"127.0.0.1"}
        client = OpenAI(base_url=address, api_key="none")

        def ask(prompt, **how):
            return client.chat.completions.create(
                model="merged", messages=prompt, max_tokens=8, temperature=0, **how
            )  # fmt: skip

        with ThreadPoolExecutor(10) as pool:
            said = [a.choices[0].message.content.strip() for a in pool.map(ask, prompts)]
        assert said == own
        pieces = [piece.choices[0].delta.content or "" for piece in ask(prompts[0], stream=True) if piece.choices]
        assert len(pieces) > 1 and "".join(pieces).strip() == own[0]
        with (
            pytest.raises(ServingError, match=r"port \d+ is in use by another program: .*, such as \d+"),
            serving(merged, int(address.split(":")[2].split("/")[0])),
        ):
            pass
    assert servers() == []
    with pytest.raises(OSError):
        urllib.request.urlopen(address.replace("/v1", "/health"), timeout=2)


def test_the_server_is_stopped_when_the_block_fails(merged):
    with pytest.raises(ZeroDivisionError), serving(merged):
        raise ZeroDivisionError
    assert servers() == []


def test_a_server_that_cannot_start_says_why(tmp_path, merged):
    with pytest.raises(ServingError, match="no model in"), serving(tmp_path):
        pass
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ServingError, match="ended with code 1 while starting: .*"), serving(broken):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ServingError, match="in use by another program"), serving(merged, taken.getsockname()[1]):
            pass
