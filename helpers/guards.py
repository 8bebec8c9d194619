"""Checks that a run is what its name says, each against a fault of a published walkthrough (see 10_spot_the_bug).

A check that does not hold raises a :class:`GuardError`, which names the check and the first thing at fault.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from helpers.data import Data, Example
from helpers.memory import Shape, lora_parameters
from helpers.optimizer import local
from helpers.settings import IGNORED, Settings
from helpers.sources.templates import end_tokens

import torch
from torch import nn

SAMPLE = 20_000  # elements of a weight or gradient that are compared


class GuardError(RuntimeError):
    """A run is not what it claims to be; the message says in which way."""


@dataclass(frozen=True)
class Guard:
    """A check that held, with the numbers that show it."""

    name: str
    detail: str


def count(model: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters, 4-bit weights counted as the numbers they stand for."""
    return model.num_parameters(only_trainable=True), model.num_parameters()


def trains_what_it_says(model: nn.Module, settings: Settings) -> list[Guard]:
    """`full` trains every parameter and holds no adapter; an adapter method trains the adapter and nothing else."""
    trainable, total = count(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    adapter = {name for name, _ in model.named_parameters() if "lora_" in name}
    numbers = f"{trainable:,} of {total:,} parameters"
    if settings.method == "full":
        if adapter:
            raise GuardError(
                f"full trains everything: {numbers} are trainable and {len(adapter)} adapter tensors are attached: this "
                "model was wrapped for LoRA before, and training it now would be LoRA under the name full"
            )
        if trainable != total:
            raise GuardError(f"full trains everything: only {numbers} are trainable")
        return [Guard("full trains everything", f"{numbers}, no adapter")]
    if not adapter or trained != adapter:
        raise GuardError(
            f"only the adapter is trained: {len(trained)} tensors are trainable for {len(adapter)} adapter tensors; outside "
            f"the adapter: {', '.join(sorted(trained - adapter)[:3]) or 'none'}"
        )
    config = model.peft_config[model.active_adapter]
    says = {"lora_alpha": settings.alpha, "lora_dropout": settings.dropout}
    says |= {f"use_{variant}": settings.method == variant for variant in ("dora", "rslora")}
    for name, value in says.items():
        if (found := getattr(config, name)) != value:
            raise GuardError(
                f"the adapter is that of the settings: its {name} is {found}, and the settings, which the record keeps, say "
                f"{value}: change one of them"
            )
    share = f"{numbers} ({100 * trainable / total:.3f} %), in {len(adapter)} adapter tensors"
    guards = [Guard("only the adapter is trained", share)]
    if settings.method != "dora":  # which trains a magnitude for each output beside A and B
        formula = lora_parameters(Shape.of(model.config), settings.rank, settings.targets)
        if trainable != formula:
            raise GuardError(
                f"the count equals the formula: {trainable:,} parameters are trainable, rank {settings.rank} on "
                f"{settings.targets} makes {formula:,}: the adapter has another rank or other layers than you set"
            )
        guards.append(Guard("the count equals the formula", f"sum of r (in + out) = {formula:,}"))
    return guards


def is_fresh(model: nn.Module, reference: nn.Module) -> Guard:
    """The weights to start from are those of the base as loaded from its files, which a run before may have changed."""
    expected = dict(reference.named_parameters())
    for name, value in model.named_parameters():
        if "lora_" in name:
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        reference_value = expected.get(plain, value[:0]).detach().cpu()
        if not torch.equal(value.detach().cpu(), reference_value.to(value.dtype)):
            raise GuardError(
                f"fresh base: {plain} is not the weight in the base model's files, so something trained or merged "
                "this model before; load it again"
            )
    return Guard("fresh base", f"{len(expected)} tensors equal to the files")


def digest(model: nn.Module, trainable: bool) -> tuple[str, int]:
    """Sixteen hexadecimal digits over all trainable or all frozen parameters, and how many tensors that were."""
    chosen = {name: value for name, value in sorted(model.named_parameters()) if value.requires_grad == trainable}
    with ThreadPoolExecutor(8) as threads:  # hashing lets other threads run
        lines = [f"{name} {digits}" for name, digits in zip(chosen, threads.map(_sha256, chosen.values()), strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16], len(lines)


def _sha256(value: torch.Tensor) -> str:
    flat = value.detach().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).cpu().numpy()).hexdigest()


def sample(tensor: torch.Tensor) -> torch.Tensor:
    """Up to about ``SAMPLE`` elements of a tensor, or of the part of it that this process holds, evenly spaced."""
    flat = local(tensor.detach()).flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)]


class WeightWatch:
    """Remembers the weights before training and proves afterwards what stayed the same and what changed."""

    def __init__(self, model: nn.Module):
        self.frozen = digest(model, trainable=False)
        self.before = {n: sample(p).clone().cpu() for n, p in model.named_parameters() if p.requires_grad}

    def forget(self, names: list[str]) -> None:
        """Expect no change of some trained weights: those that get no gradient."""
        self.before = {name: value for name, value in self.before.items() if name not in names}

    def changed(self, weights: dict[str, torch.Tensor]) -> tuple[float, list[str]]:
        """The share of sampled elements of these weights that differ now, and the names of tensors without any change."""
        changed, seen, unchanged = 0, 0, []
        for name, value in weights.items():
            if name in self.before:
                differ = int((sample(value).cpu() != self.before[name]).sum())
                changed, seen = changed + differ, seen + len(self.before[name])
                unchanged += [name] * (not differ)
        return changed / max(seen, 1), unchanged

    def check(self, model: nn.Module, changed: list[tuple[float, list[str]]] | None = None, updates=2) -> list[Guard]:
        """Every trained tensor changed, and no frozen one.

        Args:
            changed: what :meth:`changed` gave, in each process; by default that of the model in this one.
            updates: steps at a rate above 0. In the first one LoRA's A has no gradient, because B is nought.
        """
        changed = changed or [self.changed(dict(model.named_parameters()))]
        share = sum(share for share, _ in changed) / len(changed)
        # one shard may stay: that of the embedding of tokens that no row holds
        unchanged = [name for name in changed[0][1] if all(name in others for _, others in changed)]
        unchanged = [name for name in unchanged if updates > 1 or "lora_A" not in name]
        if unchanged:
            raise GuardError(
                f"trained weights changed: {len(unchanged)} trained tensors did not change at all, {unchanged[0]} first: "
                "the steps are lost in rounding, or the tensor gets no gradient"
            )
        sampled = sum(map(len, self.before.values()))
        guards = [Guard("trained weights changed", f"{100 * share:.2f} % of {sampled:,} sampled elements differ")]
        if self.frozen[1]:
            digits, number = digest(model, trainable=False)
            if (digits, number) != self.frozen:
                raise GuardError("frozen weights did not change: they differ from those before training")
            guards.append(Guard("frozen weights did not change", f"{number} tensors, sha256 {digits} before and after"))
        return guards


def tokens_are_sound(data: Data, tokenizer, vocabulary: int) -> list[Guard]:
    """No BOS but at the start of a turn, each answer supervised up to the token that ends its turn, no token beyond the
    vocabulary, no test question in training."""
    rows: list[Example] = data.rows
    bos, ends = tokenizer.bos_token_id, end_tokens(tokenizer)
    names = " or ".join(tokenizer.convert_ids_to_tokens(sorted(ends)))
    turns = tokenizer.bos_token is not None and tokenizer.bos_token in (tokenizer.chat_template or "")
    for number, row in enumerate(rows):
        before = {a for a, b in zip(row.input_ids, row.input_ids[1:], strict=False) if b == bos is not None}
        opened = set() if turns else before - ends - {tokenizer.eos_token_id}  # a template may open each turn with one
        if bos in before or opened:
            raise GuardError(
                f"one BOS: row {number} holds {tokenizer.bos_token} {row.input_ids.count(bos)} times, "
                "as when a rendered chat is tokenized with special tokens again"
            )
        last = [a for a, b in pairwise([*row.labels, IGNORED]) if a != IGNORED == b]  # label of each answer
        if not last or set(last) - ends:
            raise GuardError(f"EOS supervised: row {number} has an answer without {names} as its last label")
        if max(row.input_ids) >= vocabulary:
            raise GuardError(f"tokens fit: row {number} holds token {max(row.input_ids)}, the model knows {vocabulary}")
        if any(label not in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True)):
            raise GuardError(f"labels: row {number} is supervised towards a token that is not its own")
    held_out = {e.asked for e in data.test + data.harder + data.prose + data.validation}
    leaked = [e for e in data.train if e.asked in held_out]
    if leaked:
        question = leaked[0].prompt[-1]["content"]
        raise GuardError(
            f"train and test are disjoint: {len(leaked)} held-out questions are also trained on, such as {question!r}"
        )
    starts = "each turn opens with its own marker, none doubled"
    if not turns:
        starts = f"{tokenizer.bos_token} opens a row or follows an end token, never twice"
    disjoint = f"none of {len(held_out)} held-out questions is among the {len(data.train)} trained on"
    return [
        Guard("one BOS", f"{len(rows)} rows: {starts}"),
        Guard("EOS supervised", f"{names} is the last label of each answer in {len(rows)} rows"),
        Guard("train and test are disjoint", disjoint),
    ]


def batch_is_supervised(batch: dict, rows: list[Example], tokenizer) -> Guard:
    """A batch as the collator made it of some rows: their labels and no others, the ends of their answers among them.

    A collator that ignores the padding token fails where that is the end token.
    """
    labels = batch["labels"][batch["labels"] != IGNORED].tolist()
    expected = sorted(label for row in rows for label in row.labels if label != IGNORED)
    ends = end_tokens(tokenizer)
    names = " or ".join(tokenizer.convert_ids_to_tokens(sorted(ends)))
    there, due = (sum(label in ends for label in some) for some in (labels, expected))
    if there < due:
        raise GuardError(
            f"EOS in the batch: {there} of {due} {names} labels are there: the model would never learn to stop"
        )
    if sorted(labels) != expected:
        raise GuardError(
            f"labels of the batch: {len(labels)} labels where the rows have {len(expected)}: padding or a question takes "
            "part in the loss"
        )
    return Guard("EOS in the batch", f"{there} {names} labels in a batch of {len(rows)} rows")
