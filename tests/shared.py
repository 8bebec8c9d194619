"""What several test files need: a batch of rows, the losses of a run, a file spoilt."""

from pathlib import Path


def collate(batch: list, collator) -> dict:
    """One batch of tensors from encoded rows, as the trainer's loader makes it."""
    return collator([{"rows": [{"input_ids": row.input_ids, "labels": row.labels} for row in batch]}])


def losses(trained) -> list[float]:
    """The loss of each step of a finished training."""
    return [step["loss"] for step in trained.record.steps]


def flip(file: Path) -> None:
    """Overwrite the last 4 KB of a file."""
    file.write_bytes(file.read_bytes()[:-4096] + bytes(4096))
