"""Predicted memory of a training run, by part: weights, gradients, optimizer states, activations.

Parameters are counted exactly for any model; the activations are the tensors that transformers' Llama modules save, and
an estimate for other families. Libraries, freed blocks that an allocator keeps, and evaluation are not in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
from collections import Counter
from dataclasses import dataclass

GB = 1e9  # decimal, as in parameters times bytes
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # with the block scales of double quantisation, arXiv:2305.14314
LOGITS_CHUNK = 2**27  # bytes of fp32 logits that helpers.engine.loss holds at a time
UPDATED_AT_A_TIME = 2**27  # elements that helpers.optimizer updates at a time


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder. The first eight are enough for a Llama-type model; :meth:`of` counts any other."""

    layers: int
    hidden: int
    intermediate: int  # features of the gated layer that one token goes through
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # whether the output head is the embedding matrix
    linears: dict[str, tuple[int, int]] = None  # features in and out of each linear layer but the output head, by name
    copies: dict[str, int] = None  # how many layers of that name the model holds
    parameters: int = None
    sdpa: bool = True  # whether torch's scaled_dot_product_attention does all that a layer asks for

    def __post_init__(self):
        if self.linears is None:
            q, kv, gate = self.heads * self.head_dim, self.kv_heads * self.head_dim, (self.hidden, self.intermediate)
            linears = {"q_proj": (self.hidden, q), "k_proj": (self.hidden, kv), "v_proj": (self.hidden, kv)}
            linears |= {"o_proj": (q, self.hidden), "gate_proj": gate, "up_proj": gate, "down_proj": gate[::-1]}
            vars(self).update(linears=linears, copies=dict.fromkeys(linears, self.layers))
            beside = self.vocabulary * (1 if self.tied else 2) + 2 * self.layers + 1  # embedding, head, norms
            vars(self).update(parameters=self.block_weights + beside * self.hidden)

    @classmethod
    def of(cls, config) -> Shape:
        """Of any causal language model, counted on a model without memory. A ValueError says that transformers has none."""
        import torch  # predictions work without it
        from transformers import AutoModelForCausalLM
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        modules = {
            path: tuple(m.weight.shape if isinstance(m, Conv1D) else reversed(m.weight.shape))
            for path, m in model.named_modules()
            if isinstance(m, torch.nn.Linear | Conv1D) and m is not model.get_output_embeddings()
        }
        names = {path: _short_name(path, modules) for path in modules}
        text, linears = config.get_text_config(), {name: modules[path] for path, name in names.items()}
        heads, experts = getattr(text, "num_attention_heads", 1), getattr(text, "num_experts_per_tok", None) or 1
        width = getattr(text, "moe_intermediate_size" if experts > 1 else "intermediate_size", None)
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=experts * (width or max(map(max, linears.values()))),
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
            tied=bool(getattr(text, "tie_word_embeddings", False)),
            linears=linears,
            copies=dict(Counter(names.values())),
            parameters=sum(p.numel() for p in model.parameters()),
            sdpa=model._supports_sdpa,
        )

    @property
    def block_weights(self) -> int:
        """Parameters in the linear layers of all blocks: what 4-bit loading quantises."""
        return sum(number * math.prod(self.linears[name]) for name, number in self.copies.items())


def _short_name(path: str, modules: dict[str, tuple[int, int]]) -> str:
    """The shortest end of a layer's path that names layers of one size only: "q_proj", or "attn.c_proj" of GPT-2."""
    words = path.split(".")
    for start in range(len(words) - 1, -1, -1):
        name = ".".join(words[start:])
        if len({size for other, size in modules.items() if f".{other}".endswith(f".{name}")}) == 1:
            break
    return name


SHAPES = {
    "SmolLM2-135M": Shape(30, 576, 1536, 9, 3, 64, 49152, True),
    "SmolLM2-1.7B": Shape(24, 2048, 8192, 32, 32, 64, 49152, True),
    "Llama-2-7B": Shape(32, 4096, 11008, 32, 32, 128, 32000, False),
    "Llama-3-8B": Shape(32, 4096, 14336, 32, 8, 128, 128256, False),
    "Llama-2-13B": Shape(40, 5120, 13824, 40, 40, 128, 32000, False),
    "Llama-2-70B": Shape(80, 8192, 28672, 64, 8, 128, 32000, False),
}


def target_names(shape: Shape, targets: str) -> list[str]:
    """The linear layers that ``targets`` names, "all-linear" or names joined by commas; a ValueError lists those there are."""
    if targets == "all-linear":
        return list(shape.linears)
    names = [name.strip() for name in targets.split(",") if name.strip()] or [targets]
    if unknown := [name for name in names if not any(f".{known}".endswith(f".{name}") for known in shape.linears)]:
        known = ", ".join(shape.linears)
        raise ValueError(f"no layer that LoRA adapts here is called {', '.join(unknown)}; there are {known}")
    return [known for known in shape.linears if any(f".{known}".endswith(f".{name}") for name in names)]


def lora_parameters(shape: Shape, rank: int, targets: str) -> int:
    """Parameters of LoRA: A is r x in and B is out x r, so r (in + out) for each adapted layer."""
    return sum(rank * sum(shape.linears[name]) * shape.copies[name] for name in target_names(shape, targets))


@dataclass(frozen=True)
class Prediction:
    """Predicted bytes, by part. Gradients appear in the backward pass as activations are freed."""

    weights: float
    adapter: float
    masters: float  # the fp32 copies of what is trained in bf16
    optimizer: float  # AdamW's two moments, fp32
    gradients: float
    gathered: float  # the whole weights that a sharded model puts together at a time
    activations: float
    logits: float  # of one chunk of rows, and what the output head's gradient needs
    update: float  # gradients that the optimizer holds in fp32 at a time

    @property
    def total(self) -> int:
        """The peak: what stays, and the largest of the start and the end of the backward pass and the update."""
        stays = self.weights + self.adapter + self.masters + self.optimizer
        return int(stays + max(self.gathered + self.activations + self.logits, self.gradients + self.update))

    def to_dict(self) -> dict[str, int]:
        return {name: int(size) for name, size in vars(self).items()} | {"total": self.total}


def predict(
    shape: Shape,
    method: str,
    *,
    batch: int,
    length: int,
    rank: int = 8,
    targets: str = "all-linear",
    precision: str = "bf16",
    attention: str = "sdpa",
    checkpointing: bool = False,
    dropout: float = 0.0,
    fused: bool = False,
    shards: int = 1,
    loss: str = "fast",
) -> Prediction:
    """Predict the peak of one training step as this project trains: AdamW with fp32 masters and moments.

    Weights are kept in the precision of the arithmetic, or in NF4 for qlora; what is trained in bf16 has a master.
    All bytes are those of one device.

    Args:
        method: one of ``helpers.settings.METHODS``.
        batch, length: rows on the device at a time and tokens in the longest, padding included.
        rank, targets, dropout: of the adapter; ignored by ``full``.
        precision: "bf16" or "fp32", of the arithmetic.
        attention: "eager" keeps the attention matrix, "sdpa" and "varlen" do not.
        checkpointing: whether each block is run again in the backward pass instead of kept.
        fused: whether norms and gates come from fused kernels, which keep their inputs only.
        shards: devices that weights, gradients and optimizer states are spread over; ``full`` only.
        loss: "fast" holds the logits of a chunk of rows, "stock" those of all, four times over.
    """
    size, full, tokens = 2 if precision == "bf16" else 4, method == "full", batch * length
    trained = shape.parameters if full else lora_parameters(shape, rank, targets)
    weights = size * shape.parameters + (method == "qlora") * (NF4_BYTES - size) * shape.block_weights
    block = tokens * _saved_per_token(shape, method, rank, targets, size, dropout, fused)
    if attention == "eager":  # the softmax in fp32, and its copy in the arithmetic's precision
        block += batch * shape.heads * length**2 * (4 + (size if size == 2 else 0))
    boundary = tokens * shape.hidden * size
    logits = 2.5 * min(LOGITS_CHUNK, 4 * tokens * shape.vocabulary)
    if loss == "stock":  # as they come, in fp32, as probabilities, and their gradient
        logits = (size + 12) * tokens * shape.vocabulary
    head_gradient = (4 + size) * shape.vocabulary * shape.hidden if full else 0
    # what is whole at a time: the block at work and the next one, the embedding and the head
    gathered = 2 * shape.block_weights / shape.layers + shape.parameters - shape.block_weights if shards > 1 else 0
    return Prediction(
        weights=weights / shards,
        adapter=0 if full else size * trained,
        masters=4 * trained / shards if size == 2 else 0,
        optimizer=8 * trained / shards,
        gradients=size * trained / shards,
        gathered=size * gathered,
        activations=shape.layers * boundary + block if checkpointing else shape.layers * block + boundary,
        logits=logits + 3 * boundary + head_gradient,
        update=4 * min(trained / shards, UPDATED_AT_A_TIME) if size == 2 else 0,
    )


def _saved_per_token(shape: Shape, method: str, rank: int, targets: str, size: int, dropout: float, fused: bool):
    """Bytes that one block keeps for the backward pass, for each token."""
    h, i = shape.hidden, shape.intermediate
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    full = method == "full"
    # of a norm: its input, which the fused kernel keeps as it is and torch in fp32; and the factor of a trained weight
    norms = 2 * (size * h if fused else 4 * h + (size * h if full else 0))
    attention = size * (q + 2 * kv + q) + 4 * shape.heads  # q, k, v, output and the softmax sums
    mlp = size * (2 if fused else 3) * i  # gate, up, and unless fused silu(gate)
    if full:
        return norms + attention + mlp + size * (h + q + h + i)  # one input for q, k, v; one for gate, up
    adapted = target_names(shape, targets)
    inputs = {name: shape.linears[name][0] * shape.copies[name] / shape.layers for name in adapted}
    if not dropout:  # neighbours that read one tensor keep it once
        for group in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            for name in [n for n in group if n in inputs][1:]:
                inputs[name] = 0
    masks = sum(inputs.values()) if dropout else 0
    return norms + attention + mlp + size * (sum(inputs.values()) + rank * len(adapted)) + masks


_FULL = ("out of memory", "can't allocate memory", "status_alloc_failed")  # CUDA and HIP, the CPU, the BLAS libraries


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left, in the words of CUDA, HIP or the CPU's allocator."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _FULL)


def free_memory() -> None:
    """Give back the memory of deleted models, so that the next one finds room."""
    import torch  # predictions work without it

    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps freed blocks, more so as the Makefile sets it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
