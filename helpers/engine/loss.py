"""The loss of the supervised tokens alone: the output head never runs on a prompt, and its logits are never kept.

The head of a small model is a fifth of its arithmetic, and the logits of a long batch are its largest tensor
(tokens x vocabulary x 4 bytes). The gradient of the cross-entropy, softmax minus one at the target, needs no second
look at the logits, so each chunk of rows is multiplied, differentiated and forgotten in the forward pass.
"""

from __future__ import annotations

from types import MethodType

from helpers.memory import LOGITS_CHUNK
from helpers.settings import IGNORED

import torch
import torch.nn.functional as F
from peft import PeftModel

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
        hidden, weight = ctx.saved_tensors
        return (None if hidden is None else hidden * grad.to(hidden.dtype),
                None if weight is None else weight * grad.to(weight.dtype), None)  # fmt: skip


def supervised_nll(model, input_ids, labels, **inputs) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood of the supervised tokens of a batch, in nats, and their number.

    Args:
        model: a causal language model, with or without a PEFT adapter.
        input_ids, labels: of shape (rows, tokens); a label of -100 is ignored, and so is the first of each row.
        inputs: what else the decoder takes: ``attention_mask``, or the bounds of rows laid end to end.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = base.get_decoder()(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
    kept = labels[:, 1:] != IGNORED
    states, targets = hidden[:, :-1][kept], labels[:, 1:][kept]
    tokens = len(targets)
    if hidden.device.type == "cpu":
        spare = -tokens % ROUND_TO
        states, targets = F.pad(states, (0, 0, 0, spare)), F.pad(targets, (0, spare), value=IGNORED)
    head = base.get_output_embeddings().weight
    return HeadLoss.apply(states, head if torch.is_grad_enabled() else head.detach(), targets), tokens


def supervise(model) -> None:
    """Let the model's own forward return ``{"loss": ...}`` by :func:`supervised_nll` where it is given labels.

    Replacing the forward, not going around it, keeps what wraps it at work: gradient synchronisation and sharding.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    plain = base.forward

    def forward(self, input_ids=None, labels=None, num_items_in_batch=None, **inputs):
        if labels is None:
            return plain(input_ids=input_ids, **inputs)
        inputs = {name: value for name, value in inputs.items() if value is not None and name not in UNUSED}
        total, tokens = supervised_nll(self, input_ids, labels, **inputs)
        return {"loss": total / (tokens if num_items_in_batch is None else num_items_in_batch)}

    base.forward = MethodType(forward, base)


UNUSED = ("use_cache", "inputs_embeds", "output_attentions", "output_hidden_states", "return_dict")
