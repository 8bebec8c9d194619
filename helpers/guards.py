"""Checks that a run is what its name says. A violated guard stops the run with the reason.

Each catches a fault of a published walkthrough: the notebook 10_spot_the_bug shows them at work.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise

from helpers.data import Data, Example
from helpers.memory import Shape, lora_parameters
from helpers.optimizer import local
from helpers.settings import IGNORED, Settings
from helpers.sources.templates import end_tokens

import torch
from torch import nn

SAMPLE = 20_000  # elements of each trained tensor that are compared before and after


class GuardError(RuntimeError):
    """A run is not what it claims to be; the message says in which way."""


@dataclass(frozen=True)
class Guard:
    """A check that held, with the numbers that show it."""

    name: str
    detail: str

    def to_dict(self) -> dict:
        return asdict(self)


def _require(condition: bool, name: str, detail: str, fault: str) -> Guard:
    if not condition:
        raise GuardError(f"{name}: {fault}")
    return Guard(name, detail)


def count(model: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters, 4-bit weights counted as the numbers they stand for."""

    def numel(parameter: nn.Parameter) -> int:
        state = getattr(parameter, "quant_state", None)
        return state.shape.numel() if state is not None else parameter.numel()

    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(map(numel, parameters))


def trains_what_it_says(model: nn.Module, settings: Settings) -> list[Guard]:
    """`full` trains every parameter and holds no adapter; an adapter method trains the adapter and nothing else.

    Raises:
        GuardError: for a model that was wrapped or frozen by something that ran before.
    """
    trainable, total = count(model)
    adapter = [n for n, _ in model.named_parameters() if "lora_" in n]
    if settings.method == "full":
        return [
            _require(
                not adapter and trainable == total,
                "full trains everything",
                f"{trainable:,} of {total:,} parameters, no adapter",
                f"{trainable:,} of {total:,} parameters are trainable and {len(adapter)} adapter tensors are attached: "
                "this model was wrapped for LoRA before, and training it now would be LoRA under the name full",
            )
        ]
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    stray = [n for n in names if "lora_" not in n]
    guards = [
        _require(
            bool(adapter) and not stray and len(names) == len(adapter),
            "only the adapter is trained",
            f"{trainable:,} of {total:,} parameters ({100 * trainable / total:.3f} %), in {len(names)} adapter tensors",
            f"expected the adapter and nothing else to be trainable, but {len(names)} tensors are trainable for "
            f"{len(adapter)} adapter tensors; outside the adapter: {', '.join(stray[:3]) or 'none'}",
        )
    ]
    if settings.method in ("lora", "rslora", "qlora"):
        formula = lora_parameters(Shape.of(model.config), settings.rank, settings.targets)
        guards.append(
            _require(
                trainable == formula,
                "the count equals the formula",
                f"sum of r (in + out) = {formula:,}",
                f"{trainable:,} parameters are trainable, the formula gives {formula:,}: another adapter is attached",
            )
        )
    return guards


def each_holds_its_part(model: nn.Module, held: int, processes: int) -> Guard:
    """Each process holds its part of a sharded model.

    Args:
        held: bytes of weights in this process.

    Raises:
        GuardError: if a process holds more than its part.
    """
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    return _require(
        held < 1.05 * whole / processes,
        "each process holds its part",
        f"{held:,} bytes of weights here, 1/{processes} of {whole:,}",
        f"{held:,} of {whole:,} bytes of weights lie in each of {processes} processes: they were not sharded",
    )


def processes_agree(digests: list[str]) -> Guard:
    """Replicated processes hold equal weights.

    Args:
        digests: of the trained weights in each process.

    Raises:
        GuardError: if they differ.
    """
    return _require(
        len(set(digests)) == 1,
        "all processes agree",
        f"sha256 {digests[0]} of the trained weights in each of {len(digests)} processes",
        f"the trained weights differ between processes ({', '.join(digests)}): gradients were not averaged",
    )


def is_fresh(model: nn.Module, reference: nn.Module) -> Guard:
    """The weights to start from are those of the base as loaded from its files.

    Raises:
        GuardError: names the first tensor that differs, as after a run that changed the base in place.
    """
    expected = dict(reference.named_parameters())
    for name, value in model.named_parameters():
        if "lora_" in name:
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        if plain not in expected or not torch.equal(
            value.detach().cpu(), expected[plain].detach().cpu().to(value.dtype)
        ):
            raise GuardError(
                f"fresh base: {plain} is not the weight in the base model's files, so something trained or merged "
                "this model before; load it again"
            )
    return Guard("fresh base", f"{len(expected)} tensors equal to the files")


def digest(model: nn.Module, trainable: bool) -> tuple[str, int]:
    """Sixteen hexadecimal digits over all trainable or all frozen parameters, and how many tensors that were.

    They are the sha256 of a list of names, each with the sha256 of its bytes.
    """
    chosen = [(name, value) for name, value in sorted(model.named_parameters()) if value.requires_grad == trainable]
    with ThreadPoolExecutor(8) as threads:  # hashing lets other threads run
        hashes = threads.map(_sha256, [value for _, value in chosen])
        lines = [f"{name} {digits}" for (name, _), digits in zip(chosen, hashes, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16], len(lines)


def _sha256(value: torch.Tensor) -> str:
    flat = value.detach().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).cpu().numpy()).hexdigest()


class WeightWatch:
    """Remembers the weights before training and proves afterwards what stayed the same and what changed."""

    def __init__(self, model: nn.Module):
        self.frozen = digest(model, trainable=False)
        self.before = {n: self._sample(p) for n, p in model.named_parameters() if p.requires_grad}

    @staticmethod
    def _sample(value: torch.Tensor) -> torch.Tensor:
        flat = local(value.detach()).flatten()
        return flat[:: max(1, flat.numel() // SAMPLE)].clone().cpu()

    def changed(self, weights: dict[str, torch.Tensor]) -> tuple[float, list[str]]:
        """The share of sampled elements of these weights that differ now, and the names of tensors without any change."""
        changed, seen, unchanged = 0, 0, []
        for name, value in weights.items():
            if name in self.before:
                differ = int((self._sample(value) != self.before[name]).sum())
                changed, seen = changed + differ, seen + len(self.before[name])
                unchanged += [name] * (not differ)
        return changed / max(seen, 1), unchanged

    def check(self, model: nn.Module, changed: list[tuple[float, list[str]]] | None = None) -> list[Guard]:
        """The guards on what changed.

        Args:
            changed: what :meth:`changed` gave, in each process; by default that of the model in this one.

        Raises:
            GuardError: if a frozen weight changed or a trained tensor did not.
        """
        changed = changed or [self.changed(dict(model.named_parameters()))]
        share = sum(share for share, _ in changed) / len(changed)
        # one shard may stay: that of the embedding of tokens that no row holds
        unchanged = [name for name in changed[0][1] if all(name in others for _, others in changed)]
        moved = _require(
            not unchanged,
            "trained weights changed",
            f"{100 * share:.2f} % of {sum(map(len, self.before.values())):,} sampled elements differ",
            f"{len(unchanged)} trained tensors did not change at all, {unchanged[0] if unchanged else ''} first: "
            "the steps are lost in rounding or the tensor gets no gradient",
        )
        if not self.frozen[1]:
            return [moved]
        after, number = digest(model, trainable=False)
        same = _require(
            (after, number) == self.frozen,
            "frozen weights did not change",
            f"{number} tensors, sha256 {after} before and after",
            "frozen base weights differ from those before training",
        )
        return [moved, same]


def tokens_are_sound(data: Data, tokenizer, vocabulary: int) -> list[Guard]:
    """No BOS but at the start of a turn, each answer supervised up to the token that ends its turn, no token beyond the
    vocabulary, no test question in training.

    Raises:
        GuardError: names the first row at fault.
    """
    rows: list[Example] = data.train + data.validation + data.test + data.harder
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
    held_out = {e.asked for e in data.test + data.harder + data.validation}
    leaked = [e for e in data.train if e.asked in held_out]
    starts = (
        "each turn opens with its own marker, none doubled"
        if turns
        else f"{tokenizer.bos_token} opens a row or follows an end token, never twice"
    )
    return [
        Guard("one BOS", f"{len(rows)} rows: {starts}"),
        Guard("EOS supervised", f"{names} is the last label of each answer in {len(rows)} rows"),
        _require(
            not leaked,
            "train and test are disjoint",
            f"none of {len(held_out)} held-out questions is among the {len(data.train)} trained on",
            f"{len(leaked)} held-out questions are also trained on, such as {leaked[0].prompt[-1]['content'] if leaked else ''!r}",
        ),
    ]


def batch_is_supervised(batch: dict, rows: list[Example], tokenizer) -> Guard:
    """A batch as the collator made it of some rows: their labels and no others, the ends of their answers among them.

    Raises:
        GuardError: if padding is supervised, or an end token is not, as with a collator that ignores the padding token
            where that is the end token.
    """
    labels = batch["labels"][batch["labels"] != IGNORED].tolist()
    expected = sorted(label for row in rows for label in row.labels if label != IGNORED)
    ends = end_tokens(tokenizer)
    names = " or ".join(tokenizer.convert_ids_to_tokens(sorted(ends)))
    there, due = (sum(label in ends for label in some) for some in (labels, expected))
    guard = _require(
        there >= due,
        "EOS in the batch",
        f"{there} {names} labels in a batch of {len(rows)} rows",
        f"{there} of {due} {names} labels are there: the model would never learn to stop",
    )
    _require(
        sorted(labels) == expected,
        "labels of the batch",
        "",
        f"{len(labels)} labels where the rows have {len(expected)}: padding or a question takes part in the loss",
    )
    return guard
