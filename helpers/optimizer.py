"""AdamW for weights kept in 16 bits: the update happens in an fp32 master copy, the 16-bit weight is its rounding.

A bf16 number has 8 significant bits, so a step of less than about 1/256 of a weight is rounded away and training
stands still. The masters gather such steps. This is the mixed precision of arXiv:1710.03740, without a cast of every
weight in every forward pass.
"""

from __future__ import annotations

from helpers.memory import UPDATED_AT_A_TIME

import torch
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor: its part of a sharded one, otherwise the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class AdamW(torch.optim.AdamW):
    """torch's AdamW; a 16-bit parameter gets an fp32 ``master`` among its state, and fp32 moments.

    Of a sharded parameter, state and update are those of the part in this process.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient. A closure is not supported."""
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            for part in _parts(trained):
                self._update(part, group)

    def _update(self, parameters: list[torch.nn.Parameter], group: dict) -> None:
        states, weights = [self._state(p) for p in parameters], [local(p) for p in parameters]
        masters = [s.get("master", w) for w, s in zip(weights, states, strict=True)]
        gradients = [local(p.grad).to(m.dtype) for p, m in zip(parameters, masters, strict=True)]
        averages, squares, steps = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        rates = {"beta1": group["betas"][0], "beta2": group["betas"][1]}
        rates |= {name: group[name] for name in ("lr", "weight_decay", "eps")}
        adamw(masters, gradients, averages, squares, [], steps, fused=True, amsgrad=False, maximize=False, **rates)
        kept = [(w, m) for w, m in zip(weights, masters, strict=True) if w is not m]
        if kept:
            torch._foreach_copy_(*map(list, zip(*kept, strict=True)))

    def _state(self, parameter: torch.nn.Parameter) -> dict:
        state = self.state[parameter]
        if not state:
            weight = local(parameter.detach())
            wide = weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(wide), torch.zeros_like(wide)
            if wide is not weight:
                state["master"] = wide
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, which would round the fp32 states of 16-bit parameters: they are put back as they were saved."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        numbers = [n for group in state_dict["param_groups"] for n in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if name != "step":
                    self.state[parameter][name] = value.to(parameter.device, copy=True)


def _parts(parameters: list[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    """The parameters of one device and dtype in groups that hold few fp32 gradients at a time."""
    parts, room = [], 0
    for parameter in parameters:
        if parameter.numel() > room:
            parts.append([])
            room = max(UPDATED_AT_A_TIME, parameter.numel())
        parts[-1].append(parameter)
        room -= parameter.numel()
    return parts
