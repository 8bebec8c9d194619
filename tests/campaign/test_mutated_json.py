"""Two thousand mutated files of each JSON that the project reads, and five hundred mutated archives of each kind.

Each gets an answer within ten seconds: what it holds, or one sentence of the module that reads it.
"""

import collections
import random
import zipfile

from helpers.publish import report
from helpers.workshop import CatchUpError, archives
from tests.campaign.readers import readers
from tests.headless.test_mutated_json import check_mutated, finished, mutated, within  # noqa: F401

import pytest

FILES, ARCHIVES = 2000, 500


@pytest.mark.parametrize("name", ["status", "record", "notebook"])
def test_mutated_files_of_a_run_give_values_or_a_sentence(finished, name):  # noqa: F811
    check_mutated(finished, name, count=FILES, seed=2)


def answered(ask, errors: tuple) -> str:
    """Whether a file was taken or refused; a refusal is one sentence."""
    try:
        with within(10):
            ask()
    except errors as refusal:
        assert "\n" not in str(refusal) and 10 < len(str(refusal)) < 1500, refusal
        return "refused"
    return "taken"


def test_every_other_json_gives_values_or_a_sentence(runs, tiny, tmp_path):
    for name, reader in readers(runs, tiny, tmp_path).items():
        original, chance, counts = reader.file.read_text(), random.Random(name), collections.Counter()
        assert answered(reader.ask, ()) == "taken"
        for number in range(FILES):
            reader.file.write_bytes(mutated(original, chance))
            try:
                counts[answered(reader.ask, reader.answers)] += 1
            except Exception as error:
                error.add_note(f"{name}, file {number}: {reader.file.read_bytes()[:2000]}")
                raise
        reader.file.write_text(original)
        print(name, dict(counts), flush=True)


def mutated_archive(raw: bytes, chance: random.Random) -> bytes:
    """An archive with bytes replaced, cut out, doubled or put in, mostly in its directory, which lies at its end."""
    content = bytearray(raw)
    for _ in range(chance.randint(1, 4)):
        at = len(content) - chance.randrange(1, 1500) if chance.random() < 0.7 else chance.randrange(len(content))
        length = chance.choice([1, 1, 1, 4, 40, 4000])
        new = chance.choice(
            [chance.randbytes(length), b"", bytes(content[at : at + length]) * 2, b"\xff" * length, bytes(length)]
        )
        content[at : at + length] = new
    return bytes(content)


def test_mutated_archives_leave_a_whole_run_or_a_sentence(runs, tmp_path):
    settings, counts = runs.settings("lora"), collections.Counter()
    whole = archives.pack(settings, "lora", tmp_path)
    with zipfile.ZipFile(tmp_path / "report.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(runs.lora.folder / "record.json", "lora-s0/record.json")
    weights = (runs.lora.folder / "adapter/adapter_model.safetensors").read_bytes()
    for file, errors in ((whole, (CatchUpError,)), (tmp_path / "report.zip", (report.ReportError,))):
        raw, chance = file.read_bytes(), random.Random(3)
        for number in range(ARCHIVES):
            file.write_bytes(mutated_archive(raw, chance))
            target = tmp_path / str(number) / "lora-s0"
            target.parent.mkdir(exist_ok=True)

            def ask(file=file, target=target):
                if file != whole:
                    return report.table(*report.read(file))
                archives.unpack(file, "lora", settings, target)
                assert (target / "adapter/adapter_model.safetensors").read_bytes() == weights

            counts[file.name, answered(ask, errors)] += 1
    print(dict(counts))
