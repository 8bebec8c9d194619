"""The tables of README and of the pages in docs/ that come from measurements: ``python -m docs.figures`` renews them.

A block stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``, and the function NAME below writes it from
``helpers/reference``, the profiles and the notebooks. ``python -m docs.figures keep runs/small small-cpu`` first keeps the
times of a run of the series as ``helpers/reference/series-small-cpu.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

from docs import seats as cards
from helpers.comparison import accuracy, by_method
from helpers.headless.runner import find_notebooks
from helpers.memory import GB
from helpers.records import REFERENCE, load_reference, load_table, now
from helpers.settings import PROFILES, ROOT

import nbformat

BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
WHAT = {
    "00": "check the machine and make a first, very small fine-tune",
    "01": "follow a conversation from its file to tokens and labels",
    "02": "train a LoRA adapter and compare the model before and after",
    "03": "train every parameter on the same rows",
    "04": "compare the two methods from their records",
    "05": "chat with the models, merge the adapter, save and reload",
    "06": "quantize to 4 bits by hand, train on top, merge correctly",
    "07": "train on several GPUs, or on two CPU processes",
    "08": "serve the merged model and write its model card",
    "09": "speed up training one change at a time",
    "10": "find what went wrong in ten runs",
    "11": "continue after fine-tuning with GRPO and DPO",
}
METHODS = {"base": "the untouched model", "lora": "LoRA", "full": "full fine-tuning"}
SPEED = {
    "as published: fp32, padded": "LoRA as published: fp32, padded rows", "8,192 tokens a step": "LoRA on q and v, 8,192 tokens per step",
    "Liger kernels, 8,192": 'the same with `kernels="liger"`', "each layer compiled": "the same with `compile=True`",
    "all-linear, compiled, 8,192": "LoRA on all linear layers, compiled", "QLoRA, compiled, 2,048": "QLoRA on q and v, 2,048 tokens per step, compiled",
    "full, compiled, 8,192": "full, bf16 with fp32 master copies, compiled",
}  # fmt: skip
RIVALS = {"LoRA q,v": "each layer compiled", "LoRA all-linear": "all-linear, compiled, 8,192",
          "QLoRA q,v, 2,048": "QLoRA, compiled, 2,048", "full, fused AdamW": "full, compiled, 8,192"}  # fmt: skip


def table(header: str, rows: list[list]) -> str:
    """A Markdown table; ``header`` names its columns, joined by ``|``."""
    columns = header.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).strip() for cell in line) + " |" for line in lines)


def duration(seconds: float | None) -> str:
    """Seconds as people write them: 21 s, 5 min 18 s; a dash where nothing was measured."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def gigabytes(size: float | None) -> str:
    return f"{size / 1e9:.1f} GB" if size and size > 1e8 else "-"


def measured(series: str) -> dict[str, dict]:
    """What was measured of each notebook of the series in ``helpers/reference/series-<series>.json``."""
    return {row["notebook"]: row for row in load_table(f"series-{series}")["rows"]}


def linked(notebook: Path, page: Path) -> str:
    """Number and title of a notebook, as a link from a page."""
    first = nbformat.read(notebook, 4).cells[0].source
    return f"[{notebook.stem[:2]} {first.partition(chr(10))[0].lstrip('# ')}]({os.path.relpath(notebook, page.parent)})"


def notebooks(page: Path) -> str:
    """README: what each notebook does and how long it takes."""
    times, about = measured("small-cpu"), load_table("series-small-cpu")
    rows = []
    for path in find_notebooks():
        seconds = times.get(path.stem, {}).get("seconds")
        rows.append([linked(path, page), WHAT[path.stem[:2]], f"{seconds / 60:.1f}" if seconds else "-"])
    total = sum(row["seconds"] for row in times.values()) / 60
    return table("notebook|what you do|minutes", rows) + (
        f"\n\n`make run-all` took {total:.0f} minutes on {about['device']} ({about['date']})."
    )


def series_small(page: Path) -> str:
    """The series on `small`: time and memory on a CPU, time on a GPU."""
    cpu, gpu = measured("small-cpu"), measured("small-h200")
    rows = []
    for path in find_notebooks():
        here, there = cpu.get(path.stem, {}), gpu.get(path.stem, {})
        more = f" ({there['devices']} GPUs)" if there.get("devices", 1) > 1 else ""
        rows.append(
            [
                path.stem,
                duration(here.get("seconds")),
                gigabytes(here.get("resident")),
                duration(there.get("seconds")) + more,
            ]
        )
    names = [
        f"{load_table(f'series-{name}')['device']}, {load_table(f'series-{name}')['date']}"
        for name in ("small-cpu", "small-h200")
    ]
    return table(f"notebook|{names[0]}|main memory there|{names[1]}", rows)


def series_7b(page: Path) -> str:
    """The series on the shape of Llama-2-7B, on a GPU."""
    rows = [
        [
            name,
            duration(row["seconds"]),
            gigabytes(row["peak_memory"]),
            gigabytes(row["resident"]),
            row["devices"],
            row["finished"][:10],
        ]
        for name, row in sorted(measured("7b").items())
    ]
    return table("notebook|time|GPU memory|main memory|GPUs|date", rows)


def machine(page: Path) -> str:
    """Instructor: how long the machine works in each notebook, and how much of it is training."""
    times, about, records = measured("small-cpu"), load_table("series-small-cpu"), load_reference("small-cpu")
    training = {"02": ("lora", 0), "03": ("full", 0)}
    alone = {(r.method, r.seed): r.training.get("train_seconds") for r in records}
    rows = []
    for path in find_notebooks():
        seconds = times.get(path.stem, {}).get("seconds")
        rows.append([path.stem, duration(seconds), duration(alone.get(training.get(path.stem[:2])))])
    return table("notebook|machine time|training alone", rows) + f"\n\nMeasured on {about['device']}, {about['date']}."


def seats(page: Path) -> str:
    """Instructor: how many seats fit on one card."""
    return cards.table()


def profiles(page: Path) -> str:
    """Each profile: model, data, rows, steps, adapter, memory."""
    rows = []
    for name, settings in PROFILES.items():
        memory = "-"
        if name in cards.SHAPE:
            peaks = [[cards.peak(name, method, less) / GB for less in (False, True)] for method in ("lora", "full")]
            memory = ", ".join(
                f"{METHODS[m]} {a:.3g} GB ({b:.3g})" for m, (a, b) in zip(("lora", "full"), peaks, strict=True)
            )
        model = settings["model"].rpartition("/")[2]
        steps = f"{settings['train_rows']:,} rows, {settings['max_steps']} steps of {settings['batch_size']}"
        adapter = f"{settings['rank']}, {settings['alpha']}"
        rows.append([f"`{name}`", model, settings["data"], steps, f"{settings['max_length']:,}", adapter, memory])
    return table("profile|model|data|training|longest row, tokens|rank, alpha|predicted GPU memory", rows)


def speed(page: Path) -> str:
    """Tokens per second of the Llama-2-7B shape, by setting."""
    found = {row["name"]: row for row in load_table("speed-7b")["rows"]}
    rows = [
        [label, f"{found[name]['tokens_per_second']:,}", found[name]["tflops"], f"{found[name]['peak_gb']} GB"]
        for name, label in SPEED.items()
    ]
    return table("setting|tokens per second|TFLOP/s|peak memory", rows)


def unsloth(page: Path) -> str:
    """The same rows through Unsloth."""
    here = {row["name"]: row for row in load_table("speed-7b")["rows"]}

    def cell(row: dict | None) -> str:
        return f"{row['tokens_per_second']:,}, {row['peak_gb']} GB" if row else "-"

    found = {row["name"]: row for row in load_table("unsloth-7b")["rows"]}
    rows = [
        [SPEED[name], cell(here[name]), *(cell(found[rival].get(way)) for way in ("trainer", "bare"))]
        for rival, name in RIVALS.items()
    ]
    rows[0][0] = "LoRA on q and v, compiled"
    return table("setting|here|Unsloth's trainer|Unsloth's model, plain loop", rows)


def two_gpus(page: Path) -> str:
    """One GPU and two, on rows of 2,048 tokens."""
    runs = {(run["method"], run["devices"]): run for run in load_table("two-devices-7b")["runs"]}
    rows = []
    for method in ("lora", "full"):
        one, two = runs[method, 1], runs[method, 2]
        cells = [
            f"{run['tokens_per_second']:,.0f}, {max(r['peak'] for r in run['ranks']) / GB:.1f} GB" for run in (one, two)
        ]
        rows.append(
            [
                METHODS[method],
                cells[0],
                f"{cells[1]} each",
                f"{two['tokens_per_second'] / one['tokens_per_second']:.2f}",
            ]
        )
    return table("|one H200|two H200s|times", rows)


def story(page: Path) -> str:
    """The one figure, with what it shows as its description and in a sentence."""
    groups = by_method(load_reference("small-cpu"))
    peaks = {m: max(r.memory["predicted"]["total"] for r in runs) / GB for m, runs in groups.items() if m != "base"}
    memory = " and ".join(f"{METHODS[m]} {peak:.2g} GB" for m, peak in peaks.items())
    right = {m: "{} of {}".format(*accuracy(runs)) for m, runs in groups.items()}
    answers = ", ".join(f"{METHODS[m]} {count}" for m, count in right.items())
    image = os.path.relpath(ROOT / "notebooks/images/small-cpu.png", page.parent)
    trained = groups["lora"]
    return (
        f"![Three panels. Training loss by step for LoRA and full fine-tuning. Predicted peak memory: {memory}. Right answers: {answers}.]({image})\n\n"
        f"One run of {METHODS['lora']} and one of {METHODS['full']} for each of {len(trained)} seeds, on {trained[0].device['name']},\n"
        f"{max(r.finished for r in trained)[:10]}. Predicted memory: {memory}.\nRight answers: {answers}."
    )


BLOCKS = {
    f.__name__: f
    for f in (notebooks, series_small, series_7b, machine, seats, profiles, speed, unsloth, two_gpus, story)
}


def pages() -> list[Path]:
    """README and every page in docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def renewed(page: Path) -> str:
    """The text of a page with its generated blocks written anew."""
    return BLOCK.sub(
        lambda block: f"{block[1]}\n{BLOCKS[block[2]](page)}\n\n{block[3]}", page.read_text(encoding="utf-8")
    )


def keep(folder: Path, name: str) -> Path:
    """Keep time and memory of each notebook of a run, such as ``runs/small``, as ``helpers/reference/series-<name>.json``."""
    from helpers.device import describe

    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))["notebooks"]
    rows = [
        {"notebook": n, "seconds": e["seconds"], "resident": e.get("peak")}
        for n, e in status.items()
        if e["status"] == "ok"
    ]
    target = REFERENCE / f"series-{name}.json"
    content = {"what": f"The series in {folder.name}", "date": now()[:10], "device": describe().name, "rows": rows}
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.figures", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("keep", nargs="*", metavar="keep FOLDER NAME", help="keep the times of a run first")
    given = parser.parse_args().keep
    if given:
        print(keep(Path(given[1]), given[2]))
    for page in pages():
        if (text := renewed(page)) != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(f"renewed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
