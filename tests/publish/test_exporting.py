"""A model that leaves the notebook: llama.cpp, run from its wheel, reads the same tokens and gives the same answers."""

import json
import re
import shutil

from helpers.inference import generate
from helpers.models import load_saved, merge
from helpers.publish import ExportError, check_template, export_gguf, llama_cpp, modelfile
from helpers.sources import resolve

import pytest
from openai import OpenAI


@pytest.fixture(scope="module")
def saved(runs, tmp_path_factory):
    """The merged tiny model, with a tokenizer that adds no space of its own, as llama.cpp reads one."""
    folder = tmp_path_factory.mktemp("export") / "model"
    merge(runs.settings("lora"), folder)
    (folder / "manifest.json").unlink()
    change(folder, lambda state: state["pre_tokenizer"]["pretokenizers"][-1].update(add_prefix_space=False))
    return folder


def change(folder, what):
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    what(state)
    file.write_text(json.dumps(state))


def ask(address, messages, limit=16):
    client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(model="m", messages=messages, max_tokens=limit, temperature=0)
    return answer.choices[0].message.content.strip()


def test_llama_cpp_reads_the_same_tokens_and_gives_the_same_answers(saved, runs, tmp_path):
    model, tokenizer = load_saved(saved)
    prompts = [e.prompt for e in runs.data.test[:20]]
    own = [generate(model.float(), tokenizer, [prompt], 16)[0] for prompt in prompts]
    sizes, same = {}, {}
    for kind in ("F32", "BF16", "Q8_0"):
        export_gguf(saved, tmp_path / kind, kind)
        sizes[kind] = (tmp_path / kind).stat().st_size
        with llama_cpp(tmp_path / kind) as address:
            longer = [*prompts[0], {"role": "assistant", "content": "4"}, *prompts[1]]
            assert check_template(address, tokenizer, [*prompts, longer]) > 20 * 10
            same[kind] = sum(ask(address, prompt) == answer for prompt, answer in zip(prompts, own, strict=True))
    assert sizes["F32"] > sizes["BF16"] > sizes["Q8_0"]
    assert same["F32"] == 20, same  # a random model is near a tie at each token, so rounding shows in the others
    assert same["BF16"] >= 10, same


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("bos_token + ", "", "from token 0 on they differ"),
        (" [/INST]", "[/INST]", "they differ: '"),
        ("[INST] ", "", "from token 1 on they differ"),
        ("bos_token + ", "bos_token + bos_token + ", "from token 1 on they differ: '<s>"),
    ],
)
def test_a_wrong_template_is_found_token_by_token(saved, runs, tmp_path, old, new, why):
    _, tokenizer = load_saved(saved)
    file = shutil.copytree(saved, tmp_path / "other") / "chat_template.jinja"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    export_gguf(file.parent, tmp_path / "m.gguf")
    with llama_cpp(tmp_path / "m.gguf") as address, pytest.raises(ExportError, match=re.escape(why)):
        check_template(address, tokenizer, [e.prompt for e in runs.data.test[:3]])


@pytest.mark.parametrize(
    "what",
    [
        lambda state: state["pre_tokenizer"]["pretokenizers"][-1].update(add_prefix_space=True),
        lambda state: state["pre_tokenizer"]["pretokenizers"].insert(
            0, {"type": "Punctuation", "behavior": "Isolated"}
        ),
        lambda state: state.update(normalizer={"type": "NFC"}),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_otherwise_is_refused(saved, tmp_path, what):
    folder = shutil.copytree(saved, tmp_path / "other")
    change(folder, what)
    with pytest.raises(ExportError, match="splits a text in a way that is not written here"):
        export_gguf(folder, tmp_path / "m.gguf")


def test_the_modelfile_writes_what_the_tokenizer_writes(saved, tiny):
    for tokenizer, usual in ((load_saved(saved)[1], ""), (load_saved(resolve(tiny).folder)[1], "")):
        text = modelfile(tokenizer, "m.gguf")
        template = text.partition('TEMPLATE """')[2].partition('"""')[0]
        messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 x 3?"}]
        asked = (
            template.partition("{{ .Response }}")[0]
            .replace("{{ .System }}", "Be short.")
            .replace("{{ .Prompt }}", "2 x 3?")
        )
        assert asked == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert (
            text.startswith("FROM ./m.gguf\n") and f'PARAMETER stop "{tokenizer.eos_token}"' in text and usual in text
        )
