"""Whether 4-bit weights run on this machine, and what they take: bitsandbytes, tried rather than looked up."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path

import torch


def libraries() -> list[str]:
    """The compiled libraries inside the installed bitsandbytes: "cpu", "cuda130", "rocm71" and so on."""
    found = util.find_spec("bitsandbytes")
    folder = Path(found.origin).parent if found else Path("/nonexistent")
    return sorted(file.stem.removeprefix("libbitsandbytes_") for file in folder.glob("libbitsandbytes_*.*"))


def wanted_library() -> str:
    """The library that this build of torch would use."""
    if torch.version.hip:
        return "rocm" + "".join(torch.version.hip.split(".")[:2])
    return "cuda" + torch.version.cuda.replace(".", "") if torch.cuda.is_available() else "cpu"


def runs(device: str) -> tuple[bool, str]:
    """Whether a 4-bit layer works on a device, forward and backward, and what was tried.

    Args:
        device: "cpu" or "cuda:0".
    """
    try:
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit(128, 64, compute_dtype=torch.float32, quant_type="nf4").to(device)
        x = torch.randn(4, 128, device=device, requires_grad=True)
        layer(x).square().sum().backward()
        if not x.grad.isfinite().all() or not x.grad.any():
            return False, f"a 4-bit layer on {device} gave no usable gradient"
    except Exception as error:  # an import that fails, a library for another GPU, a missing kernel
        return False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return True, f"bitsandbytes {metadata.version('bitsandbytes')} ran a 4-bit layer forward and backward on {device}"


def bits_per_weight(model: torch.nn.Module) -> float:
    """Bits that the 4-bit layers of a model really keep for each weight: codes, block scales, and the scales' scales."""
    bits = weights = 0
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            kept = [parameter, state.absmax] + ([state.state2.absmax] if state.nested else [])
            bits += 8 * sum(tensor.nbytes for tensor in kept)
            weights += state.shape.numel()
    return bits / weights
