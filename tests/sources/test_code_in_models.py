"""Code in the folder of a model is never run, and nobody is asked whether it may: not even with `y` on standard input."""

import json
import os
import shutil
import subprocess
import sys

from helpers.settings import ROOT
from helpers.sources import MANIFEST, resolve

import pytest

START = """
import sys
from pathlib import Path
from helpers import models
from helpers.settings import settings_for
from helpers.sources import ModelError, resolve

tiny, base = resolve(settings_for("tiny")), resolve(settings_for("tiny", model=sys.argv[1]))
foreign = resolve(settings_for("tiny", model=sys.argv[2]))
for name, load in {
    "configuration": lambda: base.config,
    "shape": lambda: base.shape,
    "tokenizer": lambda: models.load_tokenizer(base),
    "base": lambda: models.load_base(base, "fp32"),
    "saved model": lambda: models.load_saved(base.folder),
    "adapter": lambda: models.load_adapter(models.load_base(tiny, "fp32"), tiny, Path(sys.argv[3])),
    "foreign configuration": lambda: foreign.config,
    "foreign model": lambda: models.read_model(foreign.folder),
}.items():
    try:
        load()
        print(name, "loaded")
    except ModelError as error:
        print(name, "refused")
"""
CODE = "import pathlib\npathlib.Path({!r}).touch()\nclass Own: pass\ndef generate(*a, **k): pass\n"


@pytest.fixture(scope="module")
def hostile(runs, tiny, tmp_path_factory):
    """Folders of a model and of an adapter whose every configuration asks for code beside it, and the trace it would leave."""
    folder = tmp_path_factory.mktemp("hostile")
    model = shutil.copytree(resolve(tiny).folder, folder / "model")
    adapter = shutil.copytree(runs.lora.folder / "adapter", folder / "adapter")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoImageProcessor")
    own = {"auto_map": dict.fromkeys(kinds, "code.Own") | {"AutoTokenizer": ["code.Own", "code.Own"]}}
    for place in (model, adapter):
        (place / MANIFEST).unlink()
        for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
                     "generation_config.json"):  # fmt: skip
            content = json.loads((place / name).read_text()) if (place / name).is_file() else {}
            if place == model or name != "config.json":
                (place / name).write_text(json.dumps(content | own | {"processor_class": "Own"}))
        (place / "custom_generate").mkdir()
        for file in (place / "code.py", place / "__init__.py", place / "custom_generate/generate.py"):
            file.write_text(CODE.format(str(folder / "ran")))
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["auto_mapping"] = {"base_model_class": "Own", "parent_library": "code"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_code_beside_a_model_is_neither_run_nor_asked_about(hostile):
    """A model that works without its code loads without it; one that does not is refused."""
    config = json.loads((hostile / "model/config.json").read_text())
    foreign = shutil.copytree(hostile / "model", hostile / "foreign")
    (foreign / "config.json").write_text(json.dumps(config | {"model_type": "own", "architectures": ["Own"]}))
    done = subprocess.run(
        [sys.executable, "-c", START, *(hostile / name for name in ("model", "foreign", "adapter"))],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, input="y\n" * 50, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert not (hostile / "ran").exists(), "the code was run"
    assert done.returncode == 0 and "[y/N]" not in done.stdout + done.stderr, done.stderr
    answers = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines() if line.endswith(("loaded", "refused")))
    assert len(answers) == 8 and answers["foreign configuration"] == answers["foreign model"] == "refused", answers
