"""From encoded rows to batches: the order of a whole run, rows packed by tokens, and the collator.

Rows are never cut and never mixed: packed rows lie end to end in one long row, each with its own positions, and the
attention keeps them apart.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from helpers.settings import IGNORED, Settings, SettingsError

import torch


def training_order(data, settings: Settings) -> list[list]:
    """The micro-batches of a whole run: ``max_steps`` x ``accumulation`` lists of rows (:class:`helpers.data.Example`).

    With ``batch_tokens`` each holds as many rows as fit into that many tokens, otherwise ``batch_size`` rows. The order
    depends on the data, the seed and these sizes only, so every method sees the same rows in the same batches; and the
    rows of a step depend on ``batch_size`` x ``accumulation``, not on how that product is split.
    """
    if settings.accumulation > len(data.train):
        raise SettingsError(
            f"accumulation={settings.accumulation} is more than the {len(data.train)} rows for training"
        )
    needed, rng, batches = settings.max_steps * settings.accumulation, random.Random(settings.seed), []
    while len(batches) < needed:
        epoch = rng.sample(data.train, len(data.train))
        batches += _packed(epoch, settings.batch_tokens) if settings.batch_tokens else _grouped(epoch, settings, rng)
    return batches[:needed]


def _grouped(epoch: list, settings: Settings, rng: random.Random) -> list[list]:
    """Rows of similar length next to each other within chunks of 32 optimizer steps, so that little is padded."""
    step, batches = settings.batch_size * settings.accumulation, []
    for start in range(0, len(epoch), 32 * step):
        chunk = sorted(epoch[start : start + 32 * step], key=lambda e: len(e.input_ids))
        batches += [chunk[i : i + step] for i in range(0, len(chunk), step)]
    rng.shuffle(batches)
    return [rows for batch in batches for rows in split_evenly(batch, settings.accumulation)]


def split_evenly(batch: list, among: int) -> list[list]:
    """The rows of a batch in ``among`` lists. One that would be empty gets a row without labels, which teaches nothing."""
    parts = [batch[len(batch) * i // among : len(batch) * (i + 1) // among] for i in range(among)]
    return [rows or [replace(batch[0], labels=[IGNORED] * len(batch[0].labels))] for rows in parts]


def deal(order: list[list], settings: Settings, among: int) -> list[list]:
    """The micro-batches of a run so that each of ``among`` processes can take every n-th one, in the order of one device."""
    if settings.accumulation % among == 0:
        return order
    return [rows for batch in order for rows in split_evenly(batch, among)]


def widest(order: list[list], settings: Settings) -> int:
    """Rows in the largest micro-batch; with ``batch_tokens`` tokens, rounded up to that many unless all rows take fewer."""
    if not settings.batch_tokens:
        return max(map(len, order))
    rows = {id(row): len(row.input_ids) for batch in order for row in batch}
    return min(settings.batch_tokens, sum(rows.values()))


def _packed(epoch: list, tokens: int, open_bins: int = 16) -> list[list]:
    """First fit with a few bins open at a time, so that the shuffled order survives and the bins fill to about 99 %."""
    done, bins = [], []
    for row in epoch:
        length = len(row.input_ids)
        fits = next((b for b in bins if b[0] + length <= tokens), None)
        if fits is None:
            if len(bins) == open_bins:
                done.append(bins.pop(bins.index(max(bins, key=lambda b: b[0]))))
            bins.append(fits := [0, []])
        fits[0] += length
        fits[1].append(row)
    return [rows for _, rows in done + bins]


@dataclass
class Collator:
    """Makes one batch of tensors from micro-batches of rows.

    Args:
        flat: lay the rows end to end in one row with their bounds, instead of padding each to the longest.
        padding: the token that fills up.
        multiple: round the number of tokens of a row up to a multiple of this: fewer shapes to make kernels for.
        longest: tokens in the longest row of the run, or 0 for that of each batch; a compiled layer needs a constant.
    """

    flat: bool
    padding: int
    multiple: int = 1
    longest: int = 0

    def __call__(self, micro_batches: list[dict]) -> dict[str, torch.Tensor]:
        rows = [row for batch in micro_batches for row in batch["rows"]]
        return self._end_to_end(rows) if self.flat else self._padded(rows)

    def _padded(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        width = _up(max(len(r["input_ids"]) for r in rows), self.multiple)
        short = [width - len(r["input_ids"]) for r in rows]
        return {
            "input_ids": torch.tensor([r["input_ids"] + [self.padding] * n for r, n in zip(rows, short, strict=True)]),
            "labels": torch.tensor([r["labels"] + [IGNORED] * n for r, n in zip(rows, short, strict=True)]),
            "attention_mask": torch.tensor([[1] * (width - n) + [0] * n for n in short]),
        }

    def _end_to_end(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        lengths = [len(r["input_ids"]) for r in rows]
        spare = _up(sum(lengths), self.multiple) - sum(lengths)
        longest = self.longest or max(lengths)
        fill = [longest] * (spare // longest) + [spare % longest] * bool(spare % longest)
        bounds = torch.tensor([0, *lengths, *fill], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return {
            "input_ids": torch.tensor([[t for r in rows for t in r["input_ids"]] + [self.padding] * spare]),
            # the first token of a row has none before it to be predicted from
            "labels": torch.tensor([[t for r in rows for t in [IGNORED, *r["labels"][1:]]] + [IGNORED] * spare]),
            "position_ids": torch.tensor([[i for n in lengths + fill for i in range(n)]]),
            "cu_seq_lens_q": bounds,
            "max_length_q": longest,
        }

    def tokens(self, order: list[list]) -> int:
        """Tokens that the device works through, padding included, for these micro-batches."""
        lengths = [[len(row.input_ids) for row in rows] for rows in order]
        if self.flat:
            return sum(_up(sum(each), self.multiple) for each in lengths)
        return sum(len(each) * _up(max(each), self.multiple) for each in lengths)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
