"""A merged model served, asked and stopped; and the faults that a reader meets."""

import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from helpers.inference import generate
from helpers.models import load_saved, merge
from helpers.publish import ServingError, serving
from helpers.settings import ROOT

import nbformat
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


def test_ten_clients_get_the_models_own_answers_and_the_server_is_always_stopped(merged, runs):
    model, tokenizer = load_saved(merged, "sdpa")
    prompts = [e.prompt for e in runs.data.test[:10]]
    own = [generate(model, tokenizer, [prompt], 8)[0] for prompt in prompts]
    with pytest.raises(ZeroDivisionError), serving(merged) as address:
        port = int(address.split(":")[2].split("/")[0])
        assert {c.laddr.ip for c in servers()[0].net_connections() if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
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
        with pytest.raises(ServingError, match=r"port \d+ is in use by another program: .*, such as \d+"):
            serving(merged, port).__enter__()
        raise ZeroDivisionError  # as a cell that fails would
    assert servers() == []
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)


def test_a_server_that_cannot_start_says_why(merged, tmp_path, monkeypatch):
    with pytest.raises(ServingError, match="no model in"), serving(tmp_path):
        pass
    fails = tmp_path / "python"
    fails.write_text("#!/bin/sh\necho Traceback\necho the weights are missing\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(fails))
    with (
        pytest.raises(ServingError, match="ended with code 1 while starting: the weights are missing"),
        serving(merged),
    ):
        pass
    assert servers() == []


def test_the_commands_for_vllm_reach_this_machine_only():
    cells = nbformat.read(ROOT / "notebooks" / "08_serve.ipynb", 4).cells
    commands = [c for cell in cells for c in re.findall(r"```bash\n(docker run .*?)```", cell.source, re.DOTALL)]
    assert len(commands) == 2
    for command in commands:
        assert "--entrypoint vllm" in command and "-p 127.0.0.1:8000:8000" in command
        assert "--privileged" not in command and "--network" not in command
