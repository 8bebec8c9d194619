"""One archive that tells others how the series ran on your machine: ``make report``; and rows of results from such archives.

It holds what the doctor found, the versions of all packages, the status and the records of the series, and the ladder of 09.
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
from helpers.records import FILE_NAME, RunRecord, load, now, parse_json
from helpers.settings import PROFILES, ROOT, SettingsError, nearest, shown

LADDER = "speed.json"  # written by 09_speed
LARGEST = 20_000_000  # bytes of one file in an archive: a record has less than a hundredth
HEADER = "| device | memory | software | profile and method | steps | tokens/s | peak memory | right answers | date |"


class ReportError(ValueError):
    """An archive that is damaged or holds something else; the message says which and what to do."""


def collect(series: Path) -> dict[str, str]:
    """Everything that the report holds, as text by file name, masked.

    Args:
        series: the folder of a profile's runs, such as ``runs/small``; it may be empty.
    """
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
    """Write the archive in one step."""
    part = target.with_name(f"{target.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    os.replace(part, target)


def read(archive: Path) -> tuple[list[RunRecord], list[dict]]:
    """The records and the rungs of the ladder in an archive.

    Raises:
        ReportError: if the file is no such archive or is damaged.
    """
    records, rungs = [], []
    try:
        with zipfile.ZipFile(archive) as packed, tempfile.TemporaryDirectory() as scratch:
            for entry in packed.infolist():
                if not re.fullmatch(rf"[\w.-]+/{FILE_NAME}|{LADDER}", entry.filename):
                    continue
                if entry.file_size > LARGEST:
                    raise ReportError(f"{archive.name}: {entry.filename} is too large for a report")
                if entry.filename == LADDER:
                    ladder = parse_json(packed.read(entry), LADDER, ReportError, {"device": dict, "rungs": list})
                    rungs += [_rung(rung, ladder["device"]) for rung in ladder["rungs"]]
                else:
                    (Path(scratch) / FILE_NAME).write_bytes(packed.read(entry))
                    records.append(load(Path(scratch)))
    except ReportError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged archive
        raise ReportError(f"{archive.name} is damaged or no report ({error}); ask for it again") from None
    return records, rungs


def _rung(rung: dict, device: dict) -> dict:
    """What the table shows of a rung; raises KeyError, TypeError or ValueError for one of another shape."""
    peak = rung.get("peak")
    shown = {"name": str(rung["name"]), "device": str(device["name"])}
    return shown | {"peak": peak and float(peak), "tokens_per_second": float(rung["tokens_per_second"])}


def row(record: RunRecord) -> list[str]:
    """One run as a row of "what was run where"; what is unknown is a dash."""
    device, training, right = record.device, record.training, (record.evaluation or {}).get("exact_match")
    total, peak = device.get("total_memory"), record.memory.get("peak")
    speed, torch, runtime = training.get("tokens_per_second"), record.environment.get("torch"), device.get("runtime")
    return [
        " ".join(map(str, filter(None, (device.get("name"), device.get("architecture"))))) or "-",
        f"{total / GB:.0f} GB" if total else "-",
        ", ".join(map(str, filter(None, (f"torch {torch}" if torch else "", runtime)))) or "-",
        f"`{record.profile}`, {record.method}, seed {record.seed}",
        str(len(record.steps)) if record.steps else "-",
        f"{speed:,.0f}" if speed else "-",
        f"{peak / GB:.1f} GB" if peak else "-",
        f"{sum(right)} of {len(right)}" if right else "-",
        (record.finished or "-")[:10],
    ]


def table(records: list[RunRecord], rungs: list[dict]) -> str:
    """The rows in Markdown, and the ladder below them, for the page "what was run where"."""
    lines = [HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row(r)) + " |" for r in records]
    if rungs:
        lines += ["", "| ladder of 09, device | setting | tokens/s | peak memory |", "|---|---|---|---|"]
        for r in rungs:
            peak = f"{r['peak'] / GB:.1f} GB" if r.get("peak") else "-"
            lines.append(f"| {r['device']} | {r['name']} | {r['tokens_per_second']:,.0f} | {peak} |")
    return "\n".join(lines)


def offer(series: Path, profile: str, agreed: bool) -> int:
    """Show the report, ask, and write it; returns the exit code."""
    texts = collect(series)
    print(texts["doctor.txt"], end="\n\n")
    with tempfile.TemporaryDirectory() as scratch:
        write(texts, Path(scratch) / "report.zip")
        records, rungs = read(Path(scratch) / "report.zip")
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
    parser.add_argument("--profile", default="small")
    parser.add_argument("--runs-dir", default="runs")
    parser.add_argument("--yes", action="store_true", help="write it without a question")
    rows = "print the results of such archives as Markdown rows"
    parser.add_argument("--rows", nargs="+", type=Path, metavar="ARCHIVE", help=rows)
    given = parser.parse_args(arguments)
    try:
        if given.rows:
            found = [read(archive) for archive in given.rows]
            print(table([r for records, _ in found for r in records], [r for _, rungs in found for r in rungs]))
            return 0
        if given.profile not in PROFILES:
            raise SettingsError(f"there is no profile {given.profile!r}; {nearest(given.profile, PROFILES)}")
        return offer(ROOT / given.runs_dir / given.profile, given.profile, given.yes)
    except (ReportError, SettingsError) as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without waiting for a driver that does not answer
