"""The loss of the supervised tokens alone: the output head never runs on a prompt, and its logits are never kept.

The gradient of the cross-entropy, softmax minus one at the target, needs no second look at the logits, so each chunk of rows
is multiplied, differentiated and forgotten in the forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType
from unittest.mock import patch

from helpers.memory import LOGITS_CHUNK
from helpers.settings import IGNORED

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

UNUSED = ("use_cache", "inputs_embeds", "output_attentions", "output_hidden_states", "return_dict")
ROUND_TO = 32  # rows of a matrix product on a CPU: oneDNN keeps a kernel, and a copy of the weights, for each number


class HeadLoss(torch.autograd.Function):
    """Summed negative log-likelihood of ``hidden @ weight.T`` at the targets, with its gradient made on the way.

    ``hidden`` is (rows, features), ``weight`` (vocabulary, features), ``targets`` (rows) with -100 ignored.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        rows = max(LOGITS_CHUNK // (4 * weight.shape[0]) // ROUND_TO, 1) * ROUND_TO
        for part in (slice(i, i + rows) for i in range(0, len(hidden), rows)):
            logits, kept = (hidden[part] @ weight.T).float(), targets[part] != IGNORED
            logits -= logits.logsumexp(-1, keepdim=True)  # log-probabilities, in place
            at = targets[part].clamp(min=0)[:, None]
            total -= (logits.gather(1, at)[:, 0] * kept).sum()
            if needs_hidden or needs_weight:
                grad = logits.exp_().scatter_add_(1, at, -torch.ones_like(at, dtype=torch.float32))
                grad = (grad * kept[:, None]).to(weight.dtype)
                if needs_hidden:
                    grad_hidden[part] = grad @ weight
                if needs_weight:
                    grad_weight += grad.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype) if needs_weight else None)
        return total

    @staticmethod
    def backward(ctx, grad):
        return *(None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors), None


def supervised_nll(model, input_ids, labels, **inputs) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood of the supervised tokens of a batch, in nats, and their number.

    It takes the output head for a matrix and nothing more; :func:`head_adds` says whether that is so.

    Args:
        model: a causal language model, with or without a PEFT adapter.
        input_ids, labels: of shape (rows, tokens); a label of -100 is ignored, and so is the first of each row.
        inputs: what else the decoder takes: ``attention_mask``, or the bounds of rows laid end to end.
    """
    base = inner(model)
    hidden = base.get_decoder()(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
    supervised = labels[:, 1:] != IGNORED
    states, targets = hidden[:, :-1][supervised], labels[:, 1:][supervised]
    tokens = len(targets)
    if hidden.device.type == "cpu":
        spare = -tokens % ROUND_TO
        states, targets = F.pad(states, (0, 0, 0, spare)), F.pad(targets, (0, spare), value=IGNORED)
    head = base.get_output_embeddings().weight
    return HeadLoss.apply(states, head if torch.is_grad_enabled() else head.detach(), targets), tokens


def inner(model):
    """The model itself, without the PEFT adapter around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextlib.contextmanager
def supervised(model, path: str) -> Iterator[None]:
    """Let the model's forward return ``{"loss": ...}`` where it is given labels, by the "fast" loss or its own ("stock").

    Replacing the forward, not going around it, keeps what wraps it at work: gradient synchronisation and sharding.
    """
    base = inner(model)
    plain = base.forward

    def forward(self, input_ids=None, labels=None, num_items_in_batch=None, **inputs):
        if labels is None:
            return plain(input_ids=input_ids, **inputs)
        inputs = {name: value for name, value in inputs.items() if value is not None and name not in UNUSED}
        if path == "fast":
            total, tokens = supervised_nll(self, input_ids, labels, **inputs)
        else:  # with whatever the model's own loss adds to cross-entropy
            output = plain(input_ids=input_ids, labels=labels, use_cache=False, **inputs)
            tokens = int((labels[:, 1:] != IGNORED).sum())
            total = output.loss * tokens if tokens else output.logits.float().sum() * 0  # the mean of nothing is NaN
        return {"loss": total / (tokens if num_items_in_batch is None else num_items_in_batch)}

    with patch.object(base, "forward", MethodType(forward, base)):
        yield


@torch.no_grad()
def head_adds(model, input_ids: torch.Tensor) -> str | None:
    """What a model does to its logits or its loss besides hidden x head and cross-entropy; None if nothing.

    The head is given the last hidden states of one row, (1, tokens), multiplied by 0, by 1 and by 1,000, so that a bias,
    a scale and a cap all show, however small the logits are now.
    """
    base = inner(model)
    plain, head, states = base.forward, base.get_output_embeddings(), []
    if not isinstance(head, torch.nn.Linear) or isinstance(head, BaseTunerLayer) or base.get_decoder() is base:
        return "its output head is not a plain linear layer"

    def compare(self, factor: float) -> str | None:
        def scaled(module, arguments, output):
            states.append(output.last_hidden_state * factor)
            output.last_hidden_state = states[-1]
            return output

        hook = self.get_decoder().register_forward_hook(scaled)
        try:
            output = plain(input_ids=input_ids, labels=input_ids, use_cache=False)
        finally:
            hook.remove()
        logits, expected = output.logits.float(), (states[-1] @ head.weight.T).float()
        if not (logits - expected).abs().max() <= 2**-6 * expected.abs().max():
            return "its output head does more than multiply: a bias, a scale or a cap"
        cross_entropy = F.cross_entropy(logits[0, :-1], input_ids[0, 1:]).item()
        added = abs(output.loss.item() - cross_entropy)
        return None if added <= 1e-4 * max(cross_entropy, 1) else "its own loss is not cross-entropy alone"

    with patch.object(base, "forward", MethodType(compare, base)):
        return next(filter(None, (base(factor) for factor in (0.0, 1.0, 1000.0))), None)
