"""How many seats a card carries, from the memory predictor: ``python -m docs.seats`` prints the table of instructor.md."""

from helpers.memory import SHAPES, predict
from helpers.settings import settings_for

GB = 1e9
CARDS = (24, 48, 192)  # GB
RUNTIME = 1 * GB  # allowed for each process beside what is predicted: the GPU runtime's own memory, and fragmentation
RESERVE = 0.1  # of the card, left free
ROWS = (("small", "lora"), ("small", "full"), ("llama2-7b", "qlora"), ("llama2-7b", "lora"), ("llama2-7b", "full"),
        ("llama3-8b", "qlora"), ("llama3-8b", "lora"), ("llama3-8b", "full"))  # fmt: skip
SHAPE = {"small": "SmolLM2-135M", "llama2-7b": "Llama-2-7B", "llama2-7b-r8": "Llama-2-7B",
         "llama2-7b-r64": "Llama-2-7B", "llama3-8b": "Llama-3-8B"}  # fmt: skip


def peak(profile: str, method: str, checkpointing: bool = False) -> float:
    """Predicted bytes of one training at the profile's sizes, in bf16."""
    s = settings_for(profile, method)
    rows = {"batch": 1, "length": s.batch_tokens} if s.batch_tokens else {"batch": s.batch_size, "length": s.max_length}
    adapter = {"rank": s.rank, "targets": s.targets, "dropout": s.dropout}
    return predict(SHAPES[SHAPE[profile]], method, **rows, **adapter, checkpointing=checkpointing).total


def seats(card: float, needed: float) -> int:
    """Trainings of this size, in bytes, that run at once on a card of so many bytes."""
    return int((1 - RESERVE) * card // (needed + RUNTIME))


def table() -> str:
    """In Markdown: the predicted peak of a training and the seats on each card; in brackets with checkpointing."""
    lines = ["| profile, method | predicted peak | " + " | ".join(f"{c} GB" for c in CARDS) + " |"]
    lines.append("|---|---|" + "---|" * len(CARDS))
    for profile, method in ROWS:
        plain, less = peak(profile, method), peak(profile, method, checkpointing=True)
        cells = []
        for card in CARDS:
            cells.append(f"{seats(card * GB, plain)} ({seats(card * GB, less)})")
        lines.append(f"| `{profile}`, {method} | {plain / GB:.3g} ({less / GB:.3g}) GB | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
