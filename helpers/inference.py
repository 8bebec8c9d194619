"""Using a trained model: the three kinds of it loaded, answers in batches or streamed, merging, saving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

from helpers.device import quiet
from helpers.models import load_adapter, load_base, load_tokenizer, read_model
from helpers.records import FILE_NAME
from helpers.settings import Settings, shown
from helpers.sources.base_models import ModelError, write_manifest

import torch
from transformers import AutoTokenizer, TextIteratorStreamer


def finished_folder(settings: Settings, method: str, notebook: str) -> Path:
    """The folder of a finished run of this profile and seed.

    Raises:
        ModelError: names the notebook that makes it.
    """
    folder = settings.change(method=method).folder
    if not (folder / FILE_NAME).is_file():
        raise ModelError(
            f"there is no finished {method} run in {shown(folder)}: run {notebook} with these parameters first, or go on with "
            f'a shipped one: from helpers.workshop.catch_up import catch_up; catch_up("{notebook}", settings)'
        )
    return folder


def load_trained(settings: Settings, precision: str = "bf16", attention: str = "eager", device: str = "cpu"):
    """The result of a run: a fully tuned model, or an adapter on a freshly loaded base, by ``settings.method``.

    Raises:
        ModelError: if the run has not finished.
    """
    if settings.method == "full":
        folder = finished_folder(settings, "full", "03_full_train")
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        return read_model(folder / "model", dtype=dtype, attn_implementation=attention, device_map=device)
    notebook = "06_qlora" if settings.method == "qlora" else "02_lora_train"
    folder = finished_folder(settings, settings.method, notebook)
    return load_adapter(load_base(settings, precision, attention, device), settings, folder / "adapter")


def generate(model, tokenizer, conversations: list[list[dict]], max_new_tokens: int = 64) -> list[str]:
    """Greedy answers to a batch of conversations, each ending with a user message.

    Prompts are padded on the left, so that every answer starts right after its question.
    """
    if not conversations:
        return []
    inputs = tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, return_dict=True, return_tensors="pt", padding=True,
        tokenizer_kwargs={"padding_side": "left"},
    ).to(model.device)  # fmt: skip
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        out = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None,
            use_cache=True, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    model.train(was_training)
    return [
        text.strip()
        for text in tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ]


def logits(model, ids: torch.Tensor) -> torch.Tensor:
    """The scores of every token at every position: (rows, tokens) in, (rows, tokens, vocabulary) out, as fp32."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        scores = model(input_ids=ids).logits
    model.train(was_training)
    return scores.float()


def stream(model, tokenizer, conversation: list[dict], max_new_tokens: int = 64) -> Iterator[str]:
    """The pieces of one greedy answer, as they come."""
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=300)
    inputs = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    ).to(model.device)

    def work() -> None:
        with torch.inference_mode():
            model.generate(
                **inputs, streamer=streamer, max_new_tokens=max_new_tokens, do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip

    thread = Thread(target=work, daemon=True)
    thread.start()
    yield from streamer
    thread.join()


def save_model(model, tokenizer, folder: Path, shard_size: str = "5GB") -> None:
    """Save a whole model as safetensors shards with its tokenizer and a manifest of hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(folder, max_shard_size=shard_size)
        tokenizer.save_pretrained(folder)
    write_manifest(folder)


def load_saved(folder: Path, attention: str = "eager", device: str = "cpu"):
    """A saved model and its tokenizer, as anybody would load them, in the precision they were saved in.

    Raises:
        ModelError: if the folder holds no model, or a damaged one.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"there is no saved model in {shown(folder)}")
    model = read_model(folder, dtype="auto", attn_implementation=attention, device_map=device)
    return model, AutoTokenizer.from_pretrained(folder)


def merge(settings: Settings, folder: Path, device: str = "cpu") -> None:
    """Merge the adapter of a finished run into its base, in fp32, and save the sum in bf16 as a whole model.

    The base of a QLoRA adapter is the 4-bit one it was trained on: that one is dequantised, and the adapter added to it.
    """
    model = (
        load_trained(settings, "fp32", "eager", device)
        if settings.method != "qlora"
        else on_dequantised(settings, device)
    )
    merged = model.merge_and_unload()
    for weight in merged.parameters():  # not model.to(): that would round the rotary frequencies too
        weight.data = weight.data.to(torch.bfloat16)
    shutil.rmtree(folder, ignore_errors=True)
    save_model(merged, load_tokenizer(settings), folder)


def on_dequantised(settings: Settings, device: str = "cpu"):
    """A QLoRA adapter on the numbers that its 4-bit base stands for, held in fp32."""
    folder = finished_folder(settings, settings.method, "06_qlora")
    with quiet():
        base = load_base(settings, "fp32", "eager", device).dequantize()
    return load_adapter(base, settings, folder / "adapter")


def base_of(folder: Path) -> dict:
    """Which base an adapter was trained on: model, revision and fingerprint."""
    return json.loads((folder / "base.json").read_text(encoding="utf-8"))
