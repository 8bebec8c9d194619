"""What training did to the weights: the singular values of the update of some layers, for any method.

How fast they fall says how much a low rank could hold.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from helpers.models import base_tensor, decoder_blocks

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers.pytorch_utils import Conv1D


def weight_updates(model, folder: Path, layers: int = 3, exact: dict[str, torch.Tensor] | None = None) -> list[dict]:
    """Singular values of the update of each linear layer in a few decoder blocks, spread from first to last.

    Args:
        model: the tuned model, full or with its adapter, before it is merged.
        folder: of the base model.
        layers: how many decoder blocks to look at.
        exact: trained weights by name where they are known to more digits than the model holds.

    Returns:
        For each weight: ``layer`` ("12.q_proj"), ``ranks`` (1, 2, 4, ... and the last), the ``singular_values`` at those
        ranks, ``energy`` (the share of the squared Frobenius norm that the best product of each rank holds,
        Eckart and Young 1936) and ``relative_norm`` (of the update against the base weight).
    """
    adapted, exact, updates = isinstance(model, PeftModel), exact or {}, []
    base = model.get_base_model() if adapted else model
    names, blocks = {module: f"{name}.weight" for name, module in base.named_modules()}, decoder_blocks(base)
    last = len(blocks) - 1
    chosen = {round(i * last / (layers - 1)) for i in range(layers)} if layers > 1 else {(last + 1) // 2}
    kinds = BaseTunerLayer if adapted else torch.nn.Linear | Conv1D
    named = ((index, path, layer) for index in sorted(chosen) for path, layer in blocks[index].named_modules())
    for index, path, layer in named:
        if not isinstance(layer, kinds):
            continue
        with contextlib.suppress(KeyError), torch.no_grad():  # a family may name its weights otherwise in its files
            if adapted:
                before, delta = layer.get_base_layer().weight, layer.get_delta_weight(layer.active_adapters[0])
                before = before if before.shape == delta.shape else base_tensor(folder, names[layer])
                delta = _with_magnitude(layer, before.float().to(delta.device), delta.float())
            else:
                before = base_tensor(folder, names[layer])
                delta = exact.get(names[layer], layer.weight).detach().float()
                delta = delta - before.to(delta.device)
            place = {"layer": f"{index}.{path.split('.')[-1]}"}
            updates.append(place | _spectrum(delta.float(), before.float().norm().cpu()))
    return updates


def _with_magnitude(layer, before: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """The update of a DoRA layer, which also sets the length of each output's weights; that of another layer as it is."""
    lengths = getattr(layer, "lora_magnitude_vector", {})
    if (name := layer.active_adapters[0]) not in lengths:
        return delta
    inputs = 0 if layer.fan_in_fan_out else 1
    length = lengths[name].weight.detach().float().reshape(-1).unsqueeze(inputs)
    turned = before + delta
    return length / turned.norm(dim=inputs, keepdim=True) * turned - before


def _spectrum(delta: torch.Tensor, before: torch.Tensor) -> dict:
    values = torch.linalg.svdvals(delta)
    squared = values.double() ** 2
    energy = (squared.cumsum(0) / squared.sum().clamp_min(1e-300)).tolist()
    ranks = [2**k for k in range(20) if 2**k <= len(values)]
    ranks += [len(values)] * (ranks[-1] != len(values))
    return {
        "ranks": ranks,
        "relative_norm": float(f"{(delta.norm().cpu() / before).item():.4g}"),
        "singular_values": [float(f"{values[r - 1].item():.4g}") for r in ranks],
        "energy": [round(energy[r - 1], 5) for r in ranks],
    }
