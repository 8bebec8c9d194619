"""Files of a run with something wrong in them: values or a sentence, never a traceback, a hang or a false "passed"."""

import contextlib
import copy
import json
import random
import signal

from helpers import records
from helpers.headless import UsageError, find_notebooks
from helpers.headless.pages import write_index
from helpers.headless.parameters import parameters_of, promised
from helpers.headless.status import Status, states
from helpers.records import RecordError, RunRecord

import nbformat
import pytest

ODD = [
    None,
    True,
    -1,
    0.5,
    "",
    "\0",
    "x" * 300,
    "../../etc/passwd",
    "ok",
    [],
    {},
    [[]],
    {"a": None},
    10**19,
    "\ud800",
    [1] * 50,
]
NUMBERS = [
    b"9" * 5000,
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"[" * 60,
    b"[" * 100_000,
    b'{"a":' * 60,
    b"\xff\xfe",
    b"\xed\xa0\x80",
]


def mutated(text: str, chance: random.Random) -> bytes:
    """A JSON text with one to three things wrong: in its values, or in its bytes."""
    value = json.loads(text)
    for _ in range(chance.randint(1, 3)):
        holder, key = _place(value, chance)
        if chance.random() < 0.3:
            del holder[key]
        elif chance.random() < 0.2 and isinstance(holder, dict):
            holder[chance.choice(["", "x", "0" * 300, key.upper()])] = holder.pop(key)
        else:
            holder[key] = copy.deepcopy(chance.choice(ODD))
        if not (isinstance(value, dict) and value):
            break
    content = json.dumps(value).encode()
    if chance.random() < 0.4:
        place = chance.randrange(len(content) + 1)
        content = chance.choice([
            content[:place], content[:place] + chance.choice(NUMBERS) + content[place:], content[place:],
            content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :], content + content,
        ])  # fmt: skip
    return content


def _place(value, chance: random.Random):
    """A place in a JSON value, what holds it and the key there; each level is as likely as the next."""
    while True:
        key = chance.choice([*value] if isinstance(value, dict) else range(len(value)))
        if not (isinstance(value[key], dict | list) and value[key] and chance.random() < 0.6):
            return value, key
        value = value[key]


@contextlib.contextmanager
def within(seconds: int):
    """Fail if it takes longer."""

    def late(*_):
        raise AssertionError(f"it took longer than {seconds} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


class Finished:
    """A run with one notebook that passed and made a record, and one that failed."""

    def __init__(self, book):
        self.book, self.given = book, {"seed": 0}
        self.passed, self.failed = book.write("00_passed", "1", records=["lora"]), book.write("01_failed", "2")
        record = RunRecord("lora", "tiny", 0, steps=[{"step": 1, "loss": 0.5}], guards=[{"name": "a", "detail": "b"}])
        (book.out / "lora-s0").mkdir(parents=True)
        (book.out / "lora-s0/adapter").write_bytes(b"weights")
        record.files, record.memory = {"adapter": 7}, {"peak": 10**9, "timeline": [[0, 1], [1, 2]]}
        self.record = record.save(book.out / "lora-s0")
        status = Status(book.out, "tiny")
        (book.out / "notebooks").mkdir()
        for notebook, end in (
            (self.passed, {"status": "ok"}),
            (self.failed, {"status": "failed", "why": "E: x", "cell": 2}),
        ):
            if end["status"] == "ok":
                end["used"] = status.used(notebook, self.given, states(notebook, self.given), [])
            status.update(
                notebook, **end, parameters=self.given, cells=3, heading="A step", seconds=1.5, page=True, peak=10**8
            )
            (book.out / "notebooks" / notebook.name).touch()
        self.status = status.file
        self.files = {"status": self.status, "record": self.record, "notebook": self.passed}
        self.original = {name: path.read_text() for name, path in self.files.items()}

    def check(self, name: str, content: bytes) -> None:
        """Put this content in the place of a file, and ask everything that reads it."""
        self.files[name].write_bytes(content)
        with within(10):
            status = Status(self.book.out, "tiny")
            with contextlib.suppress(RecordError):
                assert isinstance(records.lost_files(records.load(self.record), self.record.parent), list)
            write_index(self.book.out, "tiny", status.notebooks)
            with contextlib.suppress(UsageError):
                assert isinstance(parameters_of(self.passed), dict) and isinstance(promised(self.passed), list)
                assert [p.stem for p in find_notebooks()] == ["00_passed", "01_failed"]
                assert not status.up_to_date(self.failed, self.given)
                if status.up_to_date(self.passed, self.given):
                    unchanged = json.loads(self.original["status"])["notebooks"]["00_passed"]
                    entry = status.entry(self.passed)
                    assert name == "status" and entry["status"] == unchanged["status"]
                    assert entry["used"].items() <= unchanged["used"].items() and entry["parameters"] == self.given
        self.files[name].write_text(self.original[name])


@pytest.fixture
def finished(book) -> Finished:
    run = Finished(book)
    assert Status(book.out, "tiny").up_to_date(run.passed, run.given)
    nbformat.read(run.passed, 4)
    return run


def check_mutated(finished: Finished, name: str, count: int, seed: int) -> None:
    """Ask for an answer to many mutated files of one kind."""
    chance = random.Random(seed)
    for _ in range(count):
        finished.check(name, mutated(finished.original[name], chance))


@pytest.mark.parametrize("name", ["status", "record", "notebook"])
def test_mutated_files_give_values_or_a_sentence(finished, name):
    check_mutated(finished, name, count=80, seed=1)
