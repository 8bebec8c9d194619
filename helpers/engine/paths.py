"""Which path trains a model: the fast one where it gives the model's own loss and gradient, otherwise the model's own.

Nothing is known of a family by its name. A real row and half of it go through the model's own forward pass, one at a time
and without padding; then both together through the fast loss, layout, attention and kernels. In bf16 rounding alone can turn
the gradients of a deep model by a tenth, so where the two differ, fp32 decides which is nearer.
"""

from __future__ import annotations

from dataclasses import replace

from helpers.batches import Collator
from helpers.device import Plan
from helpers.engine import distributed
from helpers.engine.attention import NAME as VARLEN
from helpers.engine.loss import head_adds, supervised
from helpers.engine.preflight import TrainingError
from helpers.engine.trainer import fast
from helpers.guards import sample
from helpers.memory import is_out_of_memory
from helpers.optimizer import local
from helpers.settings import IGNORED

import torch
from accelerate.utils import send_to_device

LOGITS = 2**31  # bytes that the logits of the model's own pass may take: a longer row is cut for the comparison
# how far loss and gradient may be apart, relative: rounding of the precision, in another order of the same arithmetic
TOLERANCE = {"fp32": (1e-4, 5e-3), "bf16": (2e-2, 1e-1)}


def compared(model, plan: Plan, rows: list, batches: Collator, name: str) -> tuple[dict[str, dict], list[str]]:
    """Compare the planned path with the model's own forward pass on the longest row, and decide which one trains it.

    Returns:
        Decisions for :func:`helpers.device.plan`: ``loss`` ("fast" or "stock"), and where layout or kernels are at fault
        also ``attention``, ``kernels`` and ``compile``, each with its reason; and the names of weights that would be
        trained and get no gradient from text.

    Raises:
        TrainingError: if the model's own forward pass fails, or the model cannot take the packed rows of ``batch_tokens``.
    """
    training, attention = model.training, model.config._attn_implementation
    model.eval()  # no dropout
    pieces, reasons, exact, most = _pieces(rows, model), {}, None, TOLERANCE[plan.value("precision")]
    try:
        own = _own(model, pieces, name)
        for loss in ("fast", "stock"):
            reason, detail = _difference(model, plan, loss, batches, pieces, own, most)
            if reason and plan.value("precision") == "bf16" and (exact := exact or _exact(model, pieces, name)):
                rounding = [max(tolerance, 2 * off) for tolerance, off in zip(most, _distance(exact, own), strict=True)]
                reason, detail = _difference(model, plan, loss, batches, pieces, exact, rounding)
            if reason is None:
                break
            reasons[loss] = reason
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
    silent = [key for key, gradient in own[1].items() if gradient is None]
    if silent:
        print(f"{name}: {len(silent)} weights get no gradient from text and stay as they are, such as {silent[0]}")
    if not reasons:
        return {"loss": {"value": "fast", "why": detail}}, silent
    print(f"{name} is trained with its own loss: {reasons['fast']}")
    chosen = {"loss": {"value": "stock", "why": reasons["fast"]}}
    if "stock" in reasons:
        if batches.flat and plan.value("attention") != VARLEN:
            raise TrainingError(
                f"{name} cannot be trained with batch_tokens: {reasons['stock']}; set batch_size instead"
            )
        print(f"{name} is trained on padded rows with its own attention: {reasons['stock']}")
        plain = {"attention": attention, "kernels": "torch", "compile": False}
        chosen |= {key: {"value": value, "why": reasons["stock"]} for key, value in plain.items()}
    return chosen, silent


def _pieces(rows: list, model) -> list[dict]:
    """The longest row, and its first half with every token supervised, as rows for a collator."""
    longest = max(rows, key=lambda row: len(row.input_ids))
    most = max(LOGITS // (16 * model.config.get_text_config().vocab_size), 16)
    ids, labels = longest.input_ids[:most], longest.labels[:most]
    if all(label == IGNORED for label in labels[1:]):
        labels = ids
    half = ids[: max(len(ids) // 2, 2)]
    return [{"input_ids": ids, "labels": labels}, {"input_ids": half, "labels": half}]


def _pass(model, batches: list[dict]) -> tuple[float, dict[str, torch.Tensor | None]]:
    """The mean loss of some batches, and a sample of the gradient of each trained weight."""
    model.zero_grad(set_to_none=True)
    tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = model(**send_to_device(batch, model.device), num_items_in_batch=tokens)["loss"]
        loss.backward()
        total += loss.item()
    trained = [(name, p.grad) for name, p in model.named_parameters() if p.requires_grad]
    return total, {name: None if grad is None else sample(grad).float() for name, grad in trained}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _own(model, pieces: list[dict], name: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradient of the model's own forward pass, one row at a time."""
    alone = Collator(False, 0)
    try:
        if not _causal(model, pieces[0]["input_ids"][:32]):
            raise TrainingError(
                f"{name} cannot be trained to answer: its scores for a token change with the tokens that come after it, so it "
                "is no causal language model"
            )
        with supervised(model, "stock"):
            return _pass(model, [alone([{"rows": [piece]}]) for piece in pieces])
    except Exception as error:
        if isinstance(error, TrainingError) or is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{name} cannot be trained here: its own forward pass fails on a row of {len(pieces[0]['input_ids'])} tokens "
            f"({_words(error)}). Supported is any model that transformers' AutoModelForCausalLM trains on text with labels"
        ) from error


def _exact(model, pieces: list[dict], name: str) -> tuple[float, dict[str, torch.Tensor]] | None:
    """The model's own pass in fp32, or None where weights are in 4 bits or sharded, or where fp32 fails."""
    weights = list(model.parameters())
    kinds, result = [weight.dtype for weight in weights], None
    if all(weight.is_floating_point() and local(weight) is weight for weight in weights):
        model.zero_grad(set_to_none=True)
        try:
            for weight in weights:
                weight.data = weight.data.float()
            result = _own(model, pieces, name)
        except (
            Exception
        ):  # no room, or a model that cannot compute in fp32: then nothing is known, and its own path trains
            pass
        finally:
            model.zero_grad(set_to_none=True)
            for weight, kind in zip(weights, kinds, strict=True):
                weight.data = weight.data.to(kind)  # exact: each number came from there
    return result if all(distributed.gather(result is not None)) else None


@torch.no_grad()
def _causal(model, ids: list[int]) -> bool:
    """Whether a token's scores stay the same without the tokens that come after it."""
    ids = torch.tensor([ids], device=model.device)
    whole, half = (model(input_ids=part, use_cache=False).logits for part in (ids, ids[:, : ids.shape[1] // 2]))
    apart = (whole[:, : half.shape[1]] - half).abs().max()
    return bool(apart <= (1e-4 if half.dtype == torch.float32 else 0.05) * half.abs().max())


def _difference(model, plan: Plan, loss: str, batches: Collator, pieces, own, most) -> tuple[str | None, str]:
    """What the planned path computes otherwise than the model's own, None if nothing, and how close the two are.

    Args:
        most: how far loss and gradient may be apart, relative.
    """
    tried = {"loss": {"value": loss}, "products": {"value": "plain"}}  # fp8 has a probe of its own
    planned, reason, detail = replace(plan, decisions=plan.decisions | tried), None, ""
    try:
        if loss == "fast":
            reason = head_adds(model, torch.tensor([pieces[1]["input_ids"]], device=model.device))
        if reason is None:
            with fast(model, planned):
                found = _pass(model, [batches([{"rows": pieces}])])
                _once_in_training(model, batches([{"rows": pieces[1:]}]))
            apart, turned = _distance(own, found)
            detail = f"within {apart:.0e} (loss) and {turned:.0e} (gradient) of the model's own on real rows"
            if not (apart <= most[0] and turned <= most[1]):
                theirs = f"the model's own {own[0]:.4f}, and a gradient {turned:.1%} off"
                reason = f"the fast path gives a loss of {found[0]:.4f} against {theirs}"
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = f"the fast path fails ({_words(error)})"
    return next(filter(None, distributed.gather(reason)), None), detail


@torch.no_grad()
def _once_in_training(model, batch: dict) -> None:
    """A forward pass with the dropout of the model's own layers, which an attention may refuse; no random state is used up."""
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        model.train()(**send_to_device(batch, model.device))
        model.eval()


def _distance(own, other) -> tuple[float, float]:
    """How far loss and gradient are apart, relative; for the gradient the tensor that is farthest."""
    (own_loss, own_gradient), (loss, gradient) = own, other
    apart = abs(loss - own_loss) / max(abs(own_loss), 1e-9)
    reached = {key: value for key, value in own_gradient.items() if value is not None}
    whole = torch.stack([value.norm() for value in reached.values()]).norm()
    turned = max(
        float((gradient[key] - value).norm() / torch.maximum(value.norm(), 0.1 * whole))
        for key, value in reached.items()
    )
    return apart, turned
