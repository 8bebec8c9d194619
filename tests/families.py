"""Tiny random models of many families, built from transformers' own configurations, and a plain loop that trains them."""

import shutil
from pathlib import Path

from helpers.batches import Collator, training_order
from helpers.models import adapter_config
from helpers.settings import Settings
from helpers.sources import MANIFEST, quiet, resolve

import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, get_scheduler, set_seed

SIZES = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024}
SIZES |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024, "n_inner": 64}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "output_router_logits": True}
# by name: the model type, and what makes this family differ from Llama
FAMILIES = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral-window": ("mistral", {"sliding_window": 8}),
    "gemma2": ("gemma2", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    "phi3-fused": ("phi3", {"tie_word_embeddings": False}),
    "gpt-neox": ("gpt_neox", {}),
    "granite": ("granite", {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "olmo2": ("olmo2", {}),
    "smollm3": ("smollm3", {}),
    "falcon-alibi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "stablelm": ("stablelm", {"partial_rotary_factor": 0.5}),
    "gpt2": ("gpt2", GPT2),
    "qwen3-experts": ("qwen3_moe", EXPERTS | {"head_dim": 8, "router_aux_loss_coef": 0.1}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "phi-bias": ("phi", {}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "gpt-oss-sinks": ("gpt_oss", {"head_dim": 8, "num_local_experts": 4, "sliding_window": 8}),
}


def build(tiny_folder: Path, folder: Path, kind: str, changes: dict) -> Path:
    """A random model of a type in ``folder``, with the tokenizer of the tiny model and a head that gives large logits."""
    shutil.copytree(tiny_folder, folder)
    for name in (MANIFEST, "model.safetensors", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    config = AutoConfig.for_model(kind, **SIZES | changes)
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            head = model.get_output_embeddings()
            head.weight *= 40 / head.weight.std() / config.get_text_config().hidden_size ** 0.5 / 8
            if getattr(head, "bias", None) is not None:
                head.bias.normal_()
        model.save_pretrained(folder)
    return folder


def plain_losses(settings: Settings, data) -> list[float]:
    """The losses of the same steps in plain torch, transformers and peft: no part of this project computes them."""
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            resolve(settings).folder, dtype=torch.float32, attn_implementation="eager"
        )
    set_seed(settings.seed)
    if settings.method != "full":
        model = get_peft_model(model, adapter_config(settings, resolve(settings).shape))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = get_scheduler(
        settings.schedule, optimizer, min(settings.warmup_steps, settings.max_steps // 4), settings.max_steps
    )
    losses = []
    for rows in training_order(data, settings):
        batch = Collator(False, 3)([{"rows": [{"input_ids": r.input_ids, "labels": r.labels} for r in rows]}])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step(), schedule.step(), optimizer.zero_grad()
        losses.append(loss.item())
    return losses
