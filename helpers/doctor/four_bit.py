"""What 4-bit weights take, and which compiled libraries bitsandbytes brings for them."""

from importlib import metadata

import torch


def libraries() -> list[str]:
    """The compiled libraries inside the installed bitsandbytes: "cpu", "cuda130", "rocm71" and so on."""
    files = [file for file in metadata.files("bitsandbytes") or () if file.match("libbitsandbytes_*")]
    return sorted(file.stem.removeprefix("libbitsandbytes_") for file in files)


def bits_per_weight(model: torch.nn.Module) -> float:
    """Bits that the 4-bit layers of a model really keep for each weight: codes, block scales, and the scales' scales."""
    bits = weights = 0
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            kept = [parameter, state.absmax] + ([state.state2.absmax] if state.nested else [])
            bits += 8 * sum(tensor.nbytes for tensor in kept)
            weights += state.shape.numel()
    return bits / weights
