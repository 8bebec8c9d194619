"""One archive that tells others how the series ran on your machine: ``make report``; and rows of results from such archives.

Secrets are masked, and your home folder, user name and host name are replaced. You see it before it is written.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import socket
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from helpers.doctor import examine, look
from helpers.headless.masking import mask_secrets
from helpers.memory import GB
from helpers.records import FILE_NAME, RunRecord, load, load_series, now, read_json
from helpers.settings import PROFILES, ROOT, shown

LADDER = "speed.json"  # written by 09_speed
LARGEST = 20_000_000  # bytes of one file in an archive: a record has less than a hundredth


class ReportError(ValueError):
    """An archive that is damaged or holds something else; the message says which and what to do."""


def collect(series: Path) -> dict[str, str]:
    """Everything that the report of a folder such as ``runs/small`` holds, as text by file name, masked."""
    packages = sorted({f"{d.name}=={d.version}" for d in metadata.distributions()}, key=str.lower)
    texts = {"doctor.txt": examine(look()).text(width=100), "packages.txt": "\n".join(packages)}
    for file in [series / "status.json", series / LADDER, *sorted(series.glob(f"*/{FILE_NAME}"))]:
        if file.is_file():
            texts[str(file.relative_to(series))] = file.read_text(encoding="utf-8")
    return {name: anonymous(mask_secrets(text)) for name, text in texts.items()}


def anonymous(text: str) -> str:
    """The text without your home folder, the folder of the repository, your user name and the name of this machine."""
    for path, word in ((ROOT, "REPOSITORY"), (Path.home(), "HOME")):
        text = re.sub(rf"{re.escape(str(path))}(?![\w-])", word, text) if len(path.parts) > 1 else text
    for name, word in ((getpass.getuser(), "USER"), (socket.gethostname(), "HOST")):
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", word, text) if len(name) > 2 else text
    return text


def write(texts: dict[str, str], target: Path) -> None:
    """Write the archive."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)


def read(archive: Path) -> tuple[list[RunRecord], list[dict[str, str]]]:
    """The records in an archive, and the rows of the ladder; a ReportError for one that is damaged or something else."""
    records, rungs = [], []
    try:
        with zipfile.ZipFile(archive) as packed, tempfile.TemporaryDirectory() as scratch:
            for entry in packed.infolist():
                file = Path(scratch) / Path(entry.filename).name
                if file.name not in (FILE_NAME, LADDER):
                    continue
                if entry.file_size > LARGEST:
                    raise ReportError(f"{entry.filename} is too large for a report")
                file.write_bytes(packed.read(entry))
                if file.name == LADDER:
                    rungs += ladder(file)
                else:
                    records.append(load(file))
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise ReportError(f"{archive.name} is damaged or no report ({error}); ask for it again") from None
    return records, rungs


def ladder(file: Path) -> list[dict[str, str]]:
    """What 09_speed saved, by column of the table; raises KeyError, TypeError or ValueError for another shape."""
    found = read_json(file, ReportError, {"device": dict, "rungs": list})
    return [
        {
            "ladder of 09, device": str(found["device"]["name"]),
            "setting": str(rung["name"]),
            "tokens/s": f"{rung['tokens_per_second']:,.0f}",
            "peak memory": f"{rung['peak'] / GB:.1f} GB",
        }
        for rung in found["rungs"]
    ]


def row(record: RunRecord) -> dict[str, str]:
    """One run as a row of "what was run where", by column; what is unknown is a dash."""
    device, training, right = record.device, record.training, (record.evaluation or {}).get("exact_match")
    total, peak = device.get("total_memory"), record.memory.get("peak")
    speed, torch, runtime = training.get("tokens_per_second"), record.environment.get("torch"), device.get("runtime")
    return {
        "device": " ".join(map(str, filter(None, (device.get("name"), device.get("architecture"))))) or "-",
        "memory": f"{total / GB:.0f} GB" if total else "-",
        "software": ", ".join(map(str, filter(None, (f"torch {torch}" if torch else "", runtime)))) or "-",
        "profile and method": f"`{record.profile}`, {record.method}, seed {record.seed}",
        "steps": str(len(record.steps) or "-"),
        "tokens/s": f"{speed:,.0f}" if speed else "-",
        "peak memory": f"{peak / GB:.1f} GB" if peak else "-",
        "right answers": f"{sum(right)} of {len(right)}" if right else "-",
        "date": (record.finished or "-")[:10],
    }


def table(records: list[RunRecord], rungs: list[dict[str, str]]) -> str:
    """The rows in Markdown, and the ladder below them, for the page "what was run where"."""
    return "\n\n".join(_markdown(rows) for rows in (list(map(row, records)), rungs) if rows)


def _markdown(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(each.values() for each in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def offer(series: Path, profile: str, agreed: bool) -> int:
    """Show the report, ask, and write it; returns the exit code."""
    texts = collect(series)
    print(texts["doctor.txt"], end="\n\n")
    records, rungs = load_series(series, after_sft=True), ladder(series / LADDER) if LADDER in texts else []
    nothing = f"There are no finished runs in {shown(series)}: make run-all makes them."
    print(table(records, rungs) if records or rungs else nothing, "\nThe archive would hold:", sep="\n")
    print(*(f"  {name}  {len(text):,} characters" for name, text in texts.items()), sep="\n")
    while not agreed:
        if not sys.stdin.isatty():
            print("Nothing was written. Run `make report` in a terminal, or add YES=1 to write it without a question.")
            return 2
        answer = input("Write it? [y]es, [s]how every line first, anything else stops: ").strip().lower()
        if answer == "s":
            print(*(f"----- {name} -----\n{text}" for name, text in texts.items()), sep="\n")
        elif answer in ("y", "yes"):
            agreed = True
        else:
            print("Nothing was written.")
            return 0
    target = ROOT / f"report-{profile}-{now()[:16].replace(':', '')}.zip"
    write(texts, target)
    print(f'{shown(target)} is written. Please attach it to an issue, form "It ran, or did not run, on my AMD card".')
    return 0


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make report", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--profile", default="small", choices=PROFILES)
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--yes", action="store_true", help="write it without a question")
    parser.add_argument("--rows", nargs="+", type=Path, metavar="ARCHIVE", help="print the rows of such archives")
    given = parser.parse_args(arguments)
    try:
        if given.rows:
            records, rungs = (sum(lists, []) for lists in zip(*map(read, given.rows), strict=True))
            print(table(records, rungs))
            return 0
        return offer(ROOT / Path(given.runs_dir).expanduser() / given.profile, given.profile, given.yes)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without waiting for a driver that does not answer
