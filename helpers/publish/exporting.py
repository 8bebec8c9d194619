"""Export a saved model for llama.cpp and Ollama: one GGUF file and a Modelfile, both checked against the tokenizer.

Written here are models of the Llama type with a byte-level BPE tokenizer; convert_hf_to_gguf.py of llama.cpp writes others.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers.models import load_saved
from helpers.settings import shown
from helpers.sources import quiet
from helpers.sources.templates import end_tokens

import gguf
import httpx
import torch

SYSTEM, PROMPT = "one system text", "one question"  # stand-ins that no chat template holds


class ExportError(RuntimeError):
    """A model that this exporter cannot write faithfully; the message says what does not fit and what to use instead."""


def export_gguf(folder: Path, file: Path, kind: str = "BF16") -> None:
    """Write a saved model as a GGUF file with its tokenizer and chat template; norms stay in fp32.

    Args:
        folder: a whole model with its tokenizer, such as a merged one.
        file: the GGUF file to write.
        kind: of the matrices: "F32", "BF16", or "Q8_0" (blocks of 32 numbers of 8 bits with one scale each).

    Raises:
        ExportError: for another architecture, or a tokenizer that llama.cpp would read differently.
    """
    with quiet():
        model, tokenizer = load_saved(folder)
    config = model.config
    scaled = (config.rope_parameters or {}).get("rope_type", "default") != "default"
    if config.model_type != "llama" or scaled or config.attention_bias:
        raise ExportError(
            f"{shown(folder)} is a {config.model_type} model{' with scaled positions' * scaled}; only plain Llama models are "
            "written here: use convert_hf_to_gguf.py of llama.cpp"
        )
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    _add_tokenizer(writer, folder, tokenizer, config.vocab_size)
    _add_weights(writer, model, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_weights(writer: gguf.GGUFWriter, model, kind: gguf.GGMLQuantizationType) -> None:
    """All weights under llama.cpp's names. It rotates neighbouring numbers of a head, transformers the two halves of it,
    so the rows of q and k change places."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        layer = name.split(".")[-2]
        if layer in heads:
            halves = weight.reshape(heads[layer], 2, -1, weight.shape[1])
            weight = halves.transpose(1, 2).reshape(weight.shape)
        form = kind if weight.dim() > 1 else gguf.GGMLQuantizationType.F32
        numbers = gguf.quants.quantize(weight.float().numpy(), form)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), numbers, raw_dtype=form)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, tokenizer, vocabulary: int) -> None:
    """Tokens, merges, special tokens and the chat template. Whether a BOS is added is written, not left to be guessed."""
    state, kinds = json.loads(tokenizer.backend_tokenizer.to_str()), gguf.TokenType
    added = {t["id"]: kinds.CONTROL if t["special"] else kinds.USER_DEFINED for t in state["added_tokens"]}
    texts = list(enumerate(tokenizer.convert_ids_to_tokens(range(vocabulary))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(state))
    writer.add_token_list([f"[unused{number}]" if text is None else text for number, text in texts])
    writer.add_token_types([kinds.UNUSED if text is None else added.get(n, kinds.NORMAL) for n, text in texts])
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocabulary)
    special.add_special_token = {"bos": _adds_bos(tokenizer)}
    special.add_to_gguf(writer, quiet=True)


def _adds_bos(tokenizer) -> bool:
    return tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def _splitting(state: dict) -> str:
    """llama.cpp's name for the way this tokenizer splits a text before it looks for tokens."""
    steps = state["pre_tokenizer"] or {}
    *before, last = steps.get("pretokenizers", [steps])
    plain = state["model"]["type"] == "BPE" and not state["normalizer"] and last.get("type") == "ByteLevel"
    digits = [{"type": "Digits", "individual_digits": True}]
    if not plain or last["add_prefix_space"] or not last["use_regex"] or before not in ([], digits):
        raise ExportError(
            "this tokenizer splits a text in a way that is not written here, and llama.cpp would make other tokens of it: "
            "use convert_hf_to_gguf.py of llama.cpp"
        )
    return "smollm" if before else "gpt-2"


def modelfile(tokenizer, gguf_name: str) -> str:
    """An Ollama Modelfile for a GGUF file beside it, with the chat template for one question, checked.

    The template is what the tokenizer writes around a system text, a question and an answer.

    Raises:
        ExportError: if the template filled in by hand is not what the tokenizer writes.
    """

    def render(*messages: tuple[str, str], ask: bool = True) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)

    system, question = ("system", SYSTEM), ("user", PROMPT)
    asked, without_system = render(system, question), render(question).partition(PROMPT)[0]
    ending = render(system, question, ("assistant", "one answer"), ask=False).partition("one answer")[2].rstrip()
    if [asked.count(SYSTEM), asked.count(PROMPT)] != [1, 1]:
        raise ExportError(
            "the chat template changes the texts that it gets, so it cannot be written as an Ollama template"
        )
    template = asked.replace(SYSTEM, "{{ .System }}").replace(PROMPT, "{{ .Prompt }}")
    if _adds_bos(tokenizer):  # llama.cpp adds it to every prompt: once is enough
        template = template.removeprefix(tokenizer.bos_token)
    around = map(re.escape, re.split(f"{SYSTEM}|{PROMPT}", asked)[:2])
    usual = re.fullmatch("(.+)".join(around), without_system, re.DOTALL)  # the system text of a chat that gives none
    lines = [f"FROM ./{gguf_name}", f'TEMPLATE """{template}{{{{ .Response }}}}{ending}"""']
    lines += [f'SYSTEM """{usual[1]}"""'] if usual else []
    lines += [f'PARAMETER stop "{text}"' for text in tokenizer.convert_ids_to_tokens(sorted(end_tokens(tokenizer)))]
    return "\n".join([*lines, "PARAMETER temperature 0\n"])


@contextmanager
def llama_cpp(file: Path) -> Iterator[str]:
    """A server of llama.cpp over a GGUF file in this process, with its cache in fp32; yields its address.

    Raises:
        ExportError: if the package that carries llama.cpp is not installed.
    """
    try:
        import xllamacpp
    except ImportError:
        raise ExportError("llama.cpp is not installed: `pip install xllamacpp` brings it as a wheel") from None
    options = xllamacpp.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel = str(file), 2048, 1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = torch.get_num_threads()
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.warmup, options.ui, options.verbosity = False, False, -1
    server = xllamacpp.Server(options)
    try:
        yield server.listening_address
    finally:
        del server


def check_template(address: str, tokenizer, conversations: list[list[dict]]) -> int:
    """Compare, token by token, what llama.cpp makes of conversations with what the model was trained on.

    Returns:
        The number of tokens compared.

    Raises:
        ExportError: names the first token that differs, as with a wrong template or a doubled BOS.
    """

    def answer(path: str, **job) -> dict:
        return httpx.post(f"{address}/{path}", json=job, timeout=60).json()

    total = 0
    for messages in conversations:
        text = answer("apply-template", messages=messages)["prompt"]
        read = answer("tokenize", content=text, add_special=True, parse_special=True)["tokens"]
        due = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        if read != due:
            at = len(os.path.commonprefix([read, due]))
            found, wanted = (tokenizer.decode(ids[at : at + 3]) for ids in (read, due))
            raise ExportError(
                f"llama.cpp reads {len(read)} tokens where the tokenizer writes {len(due)}; from token {at} on they differ: "
                f"{found!r} instead of {wanted!r}. Compare the chat template in the GGUF file and who adds the BOS"
            )
        total += len(due)
    return total
