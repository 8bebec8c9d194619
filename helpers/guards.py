"""Checks that a run is what its name says. A violated guard stops the run with the reason.

Each catches a fault of a published walkthrough: see the notebook 04_compare for what they prove together.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from helpers.data import IGNORED, Data, Example
from helpers.engine import distributed
from helpers.engine.updates import base_tensor
from helpers.memory import Shape, lora_parameters
from helpers.models import adapted_layers, adapter_product
from helpers.settings import Settings

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
        return {"name": self.name, "detail": self.detail}


def _require(condition: bool, name: str, detail: str, fault: str) -> Guard:
    if not condition:
        raise GuardError(f"{name}: {fault}")
    return Guard(name, detail)


def count(model: nn.Module) -> tuple[int, int]:
    """Trainable and total parameters, 4-bit weights counted as the numbers they stand for."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(_numel(p) for p in model.parameters())
    return trainable, total


def _numel(parameter: nn.Parameter) -> int:
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def trains_what_it_says(model: nn.Module, settings: Settings) -> list[Guard]:
    """`full` trains every parameter and holds no adapter; an adapter method trains the adapter and nothing else.

    Raises:
        GuardError: for a model that was wrapped or frozen by something that ran before.
    """
    trainable, total = count(model)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
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
    names = [n for n in names if "ranknum" not in n]  # AdaLoRA's count of ranks in use, not a weight
    stray = [n for n in names if "lora_" not in n]
    guards = [
        _require(
            bool(adapter) and not stray and len(names) == len(adapter),
            "only the adapter is trained",
            f"{trainable:,} of {total:,} parameters ({100 * trainable / total:.3f} %), in {len(names)} adapter tensors",
            f"expected the adapter and nothing else to be trainable, found {len(adapter)} adapter tensors, "
            f"{len(names)} trainable ones and among these {stray[:3]} outside the adapter",
        )
    ]
    if settings.method in ("lora", "rslora", "qlora", "pissa"):
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


def one_device(used: int, device, processes: int = 1) -> Guard:
    """One process trains on one device; several visible ones are said, not used behind the reader's back.

    Args:
        used: how many devices the trainer would spread a batch over in this process (0 on a CPU).
        device: from helpers.device.describe.
        processes: how many train together, each on a device of its own.

    Raises:
        GuardError: if the trainer would split batches over several devices (a hidden DataParallel).
    """
    seen = f"{device.torch_name} ({device.name})"
    if processes > 1:
        seen += f"; {processes} processes, one device each"
    elif device.count > 1:
        seen += f", the first of {device.count} visible"
    return _require(
        used <= 1, "one device", seen, f"the trainer would split each batch over {used} devices: make one visible"
    )


def spread(model: nn.Module, settings: Settings, held: dict) -> Guard:
    """Several processes hold what they say: each its part of a sharded model, or all of them equal weights.

    Args:
        held: this process's bytes, from helpers.engine.distributed.held.

    Raises:
        GuardError: if a process holds more than its part, or another model than the main process.
    """
    processes, mine = distributed.processes(), held["parameters"]
    if distributed.sharded(settings):
        whole = sum(p.numel() * p.element_size() for p in model.parameters())
        return _require(
            mine < 1.05 * whole / processes,
            "each process holds its part",
            f"{mine:,} bytes of weights here, 1/{processes} of {whole:,}",
            f"{mine:,} of {whole:,} bytes of weights lie in each of {processes} processes: they were not sharded",
        )
    digests = distributed.gather(digest(model, trainable=True)[0])
    return _require(
        len(set(digests)) == 1,
        "all processes agree",
        f"sha256 {digests[0]} of the trained weights in each of {processes} processes",
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


def splits_the_base(model: nn.Module, folder: Path) -> Guard:
    """PiSSA changes the base weights; what is left of each one and its adapter must still add up to the file's weight.

    Args:
        model: with a new PiSSA adapter.
        folder: of the base model.

    Raises:
        GuardError: names the first weight that is off by more than the rounding of its precision.
    """
    worst, layers = 0.0, adapted_layers(model)
    for name, layer in layers:
        rest = layer.get_base_layer().weight
        whole = base_tensor(folder, f"{name}.weight").to(rest.device)
        gap = ((rest.float() + adapter_product(layer) - whole).abs().max() / whole.abs().max()).item()
        if not gap <= torch.finfo(rest.dtype).eps / 2 + 1e-5:
            raise GuardError(
                f"the base is split, not changed: {name} and its adapter differ from the file by {gap:.1e} of the weight"
            )
        worst = max(worst, gap)
    return Guard("the base is split, not changed", f"{len(layers)} weights: rest + adapter = file within {worst:.0e}")


def saved_is_trained(trained: torch.Tensor, saved: torch.Tensor) -> Guard:
    """A model that was saved in another form than it was trained in gives the same logits, up to rounding.

    Raises:
        GuardError: if they differ by more than 5 % of the largest.
    """
    gap = ((trained - saved).abs().max() / trained.abs().max()).item()
    return _require(
        gap < 0.05,
        "saved as a plain LoRA",
        f"on the untouched base; logits equal within {gap:.1e} of the largest",
        f"the logits of the saved adapter on the untouched base differ by {gap:.1e} of the largest",
    )


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
    """Remembers the weights before training and proves afterwards what stood still and what moved."""

    def __init__(self, model: nn.Module):
        self.frozen = digest(model, trainable=False)
        self.before = {
            n: self._sample(p) for n, p in model.named_parameters() if p.requires_grad and "ranknum" not in n
        }

    @staticmethod
    def _sample(value: torch.Tensor) -> torch.Tensor:
        flat = distributed.local(value.detach()).flatten()
        return flat[:: max(1, flat.numel() // SAMPLE)].clone().cpu()

    def changed_share(self, weights: dict[str, torch.Tensor]) -> tuple[float, list[str]]:
        """The share of sampled trained elements that differ now, and the names of tensors without any change."""
        changed, seen, still = 0, 0, []
        for name, value in weights.items():
            if name in self.before:
                moved = int((self._sample(value) != self.before[name]).sum())
                changed, seen = changed + moved, seen + len(self.before[name])
                if not moved and "lora_E" not in name:  # AdaLoRA sets the ranks it gives up back to zero
                    still.append(name)
        return changed / max(seen, 1), still

    def check(self, model: nn.Module, exact: dict[str, torch.Tensor] | None = None) -> tuple[list[Guard], float]:
        """The guards on what moved, and the changed share.

        Args:
            exact: the trained weights by name where they are known to more digits than the model holds.

        Raises:
            GuardError: if a frozen weight changed or a trained tensor stood still.
        """
        after, number = digest(model, trainable=False)
        seen = distributed.gather(self.changed_share(dict(model.named_parameters()) | (exact or {})))
        share = sum(share for share, _ in seen) / len(seen)
        # one shard may: that of the embedding of tokens that no row holds
        still = [name for name in seen[0][1] if all(name in others for _, others in seen)]
        guards = [
            _require(
                still == [],
                "trained weights moved",
                f"{100 * share:.2f} % of {sum(map(len, self.before.values())):,} sampled elements differ",
                f"{len(still)} trained tensors did not change at all, {still[0] if still else ''} first: "
                "the steps are lost in rounding or the tensor gets no gradient",
            )
        ]
        if self.frozen[1]:
            guards.append(
                _require(
                    (after, number) == self.frozen,
                    "frozen weights stood still",
                    f"{number} tensors, sha256 {after} before and after",
                    "frozen base weights differ from those before training",
                )
            )
        return guards, share


def tokens_are_sound(data: Data, tokenizer, vocabulary: int) -> list[Guard]:
    """No BOS but at the start of a turn, EOS among the labels, no token beyond the vocabulary, no test question in training.

    Raises:
        GuardError: names the first row at fault.
    """
    rows: list[Example] = data.train + data.validation + data.test + data.harder
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    turns = tokenizer.bos_token is not None and tokenizer.bos_token in (tokenizer.chat_template or "")
    for number, row in enumerate(rows):
        before = {a for a, b in zip(row.input_ids, row.input_ids[1:], strict=False) if b == bos is not None}
        if bos in before or (not turns and before - {eos}):  # a template may open each turn with one, after an end
            raise GuardError(
                f"one BOS: row {number} holds {tokenizer.bos_token} {row.input_ids.count(bos)} times, "
                "as when a rendered chat is tokenized with special tokens again"
            )
        if eos not in row.labels:
            raise GuardError(f"EOS supervised: row {number} has no {tokenizer.eos_token} among its labels")
        if max(row.input_ids) >= vocabulary:
            raise GuardError(f"tokens fit: row {number} holds token {max(row.input_ids)}, the model knows {vocabulary}")
        if any(label not in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True)):
            raise GuardError(f"labels: row {number} is supervised towards a token that is not its own")
    held_out = {str(e.prompt) for e in data.test + data.harder + data.validation}
    leaked = [e for e in data.train if str(e.prompt) in held_out]
    starts = (
        "each turn opens with its own marker, none doubled"
        if turns
        else f"{tokenizer.bos_token} opens a row or follows an end token, never twice"
    )
    return [
        Guard("one BOS", f"{len(rows)} rows: {starts}"),
        Guard("EOS supervised", f"{tokenizer.eos_token} is a label in each of {len(rows)} rows"),
        _require(
            not leaked,
            "train and test are disjoint",
            f"none of {len(held_out)} held-out questions is among the {len(data.train)} trained on",
            f"{len(leaked)} held-out questions are also trained on, such as {leaked[0].prompt[-1]['content'] if leaked else ''!r}",
        ),
    ]


def batch_is_supervised(batch: dict, rows: list[Example], tokenizer) -> Guard:
    """A batch as the collator made it of some rows: their labels and no others, EOS among them.

    Raises:
        GuardError: if padding is supervised, or EOS is not, as with a collator that ignores the padding token where
            padding is EOS.
    """
    labels = batch["labels"][batch["labels"] != IGNORED].tolist()
    expected = sorted(label for row in rows for label in row.labels if label != IGNORED)
    ends, due = labels.count(tokenizer.eos_token_id), expected.count(tokenizer.eos_token_id)
    guard = _require(
        ends >= due,
        "EOS in the batch",
        f"{ends} {tokenizer.eos_token} labels in a batch of {len(rows)} rows",
        f"{ends} of {due} {tokenizer.eos_token} labels are there: the model would never learn to stop",
    )
    _require(
        sorted(labels) == expected,
        "labels of the batch",
        "",
        f"{len(labels)} labels where the rows have {len(expected)}: padding or a question takes part in the loss",
    )
    return guard
