"""Several adapters on one base behind one server: each request gets the answer of the adapter that it names."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.inference import generate
from helpers.models import load_adapter, load_base
from helpers.publish import ServingError, serving_adapters
from helpers.sources import resolve, write_manifest

import psutil
import pytest
from openai import NotFoundError, OpenAI
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def adapters(runs, tmp_path_factory) -> dict[str, Path]:
    """Five adapters that answer differently: the trained one, scaled."""
    folders = {}
    for name, factor in (("one", 1.0), ("two", -1.0), ("three", 3.0), ("four", -3.0), ("five", 9.0)):
        folders[name] = shutil.copytree(runs.lora.folder / "adapter", tmp_path_factory.mktemp("adapters") / name)
        file = folders[name] / "adapter_model.safetensors"
        save_file({key: value * factor for key, value in load_file(file).items()}, file)
        write_manifest(folders[name])
    return folders


def servers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if any("adapter_server" in word for word in p.cmdline())]


def test_each_request_gets_the_answer_of_its_adapter_also_when_all_come_at_once(adapters, runs):
    settings, base = runs.settings("lora"), resolve(runs.settings("lora"))
    prompts = [e.prompt for e in runs.data.test[:3]]

    def alone(name):
        model = load_base(base, attention="sdpa")
        model = load_adapter(model, base, adapters[name]) if name != "base" else model
        return [generate(model.eval(), runs.lora.tokenizer, [prompt], 8)[0] for prompt in prompts]

    expected = {name: alone(name) for name in [*adapters, "base"]}
    assert len({tuple(answers) for answers in expected.values()}) >= 4, "the adapters do not differ"
    with serving_adapters(settings, adapters) as address:
        (server,) = servers()
        assert {c.laddr.ip for c in server.net_connections() if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        client = OpenAI(base_url=address, api_key="none", max_retries=0)

        def ask(job, **options):
            name, prompt = job
            return client.chat.completions.create(model=name, messages=prompt, max_tokens=8, temperature=0, **options)

        jobs = [(name, prompt) for prompt in prompts for name in expected]
        with ThreadPoolExecutor(len(jobs)) as pool:
            answers = [a.choices[0].message.content.strip() for a in pool.map(ask, jobs)]
        assert answers == [expected[name][prompts.index(prompt)] for name, prompt in jobs]
        pieces = [p.choices[0].delta.content or "" for p in ask(("two", prompts[0]), stream=True) if p.choices]
        assert len(pieces) > 1 and "".join(pieces).strip() == expected["two"][0]
        assert [model.id for model in client.models.list()] == [*adapters, "base"]
        with pytest.raises(
            NotFoundError, match="there is no model 'six' here; there are one, two, three, four, five, base"
        ):
            ask(("six", prompts[0]))
    assert servers() == []


def test_an_adapter_that_cannot_be_served_says_why(adapters, runs, tmp_path):
    settings = runs.settings("lora")
    with pytest.raises(ServingError, match="at least one adapter, under another name than"):
        serving_adapters(settings, {"base": adapters["one"]}).__enter__()
    with pytest.raises(ServingError, match="ended with code 1 while starting: .*ModelError: there is no adapter in"):
        serving_adapters(settings, {"one": adapters["one"], "two": tmp_path}).__enter__()
    assert servers() == []
