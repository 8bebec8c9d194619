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
from helpers.headless import find_notebooks
from helpers.memory import GB
from helpers.records import REFERENCE, load_reference, load_table, now
from helpers.settings import PROFILES, ROOT
from helpers.storage import read_json

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
    "10": "find what went wrong in eleven runs",
    "11": "continue after fine-tuning with GRPO and DPO",
    "12": "read a sweep and published numbers",
}
METHODS = {"base": "the untouched model", "lora": "LoRA", "full": "full fine-tuning"}
# rows of speed-7b.json, and what the page calls them
SPEED = {
    "as published: fp32, padded": "LoRA as published: fp32, padded rows",
    "8,192 tokens a step": "LoRA on q and v, 8,192 tokens per step",
    "Liger kernels, 8,192": 'the same with `kernels="liger"`',
    "each layer compiled": "the same with `compile=True`",
    "products in fp8, compiled": 'the same with `compile=True` and `products="fp8"`',
    "all-linear, compiled, 8,192": "LoRA on all linear layers, compiled",
    "all-linear, fp8, compiled, 8,192": 'LoRA on all linear layers, compiled, `products="fp8"`',
    "QLoRA, compiled, 2,048": "QLoRA on q and v, 2,048 tokens per step, compiled",
    "full, compiled, 8,192": "full, bf16 with fp32 master copies, compiled",
    "full, fp8, compiled, 8,192": 'full, compiled, `products="fp8"`',
}


def table(rows: list[str]) -> str:
    """A Markdown table; each row, the header first, joins its cells by ``|``."""
    rows = [rows[0], "|".join(["---"] * (rows[0].count("|") + 1)), *rows[1:]]
    return "\n".join(f"| {row.replace('|', ' | ')} |" for row in rows)


def duration(seconds: float | None) -> str:
    """Seconds as people write them: 21 s, 5 min 18 s; a dash where nothing was measured."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def gigabytes(size: float | None) -> str:
    """Bytes in GB; a dash for less than 0.1 GB or where nothing was measured."""
    return f"{size / GB:.1f} GB" if size and size > 1e8 else "-"


def measured(series: str) -> dict[str, dict]:
    """What was measured of each notebook of the series in ``helpers/reference/series-<series>.json``."""
    return {row["notebook"]: row for row in load_table(f"series-{series}")["rows"]}


def where(series: str) -> str:
    """Device and date of a measured series."""
    about = load_table(f"series-{series}")
    return ", ".join(filter(None, (about["device"], about["date"], about.get("note"))))


def notebooks(page: Path) -> str:
    """README: what each notebook does and how long it takes."""
    times, rows = measured("small-cpu"), ["notebook|what you do|minutes"]
    for path in find_notebooks():
        title = nbformat.read(path, 4).cells[0].source.splitlines()[0].lstrip("# ")
        minutes = f"{times[path.stem]['seconds'] / 60:.1f}" if path.stem in times else "-"
        link = os.path.relpath(path, page.parent)
        rows.append(f"[{path.stem[:2]} {title}]({link})|{WHAT[path.stem[:2]]}|{minutes}")
    total = sum(row["seconds"] for row in times.values()) / 60
    missing = "; a dash: not measured" * (len(times) < len(rows) - 1)
    return f"{table(rows)}\n\nThe minutes are those of `make run-all`, {total:.0f} for these notebooks ({where('small-cpu')}{missing})."


def series_small(page: Path) -> str:
    """The series on `small`: time and memory on a CPU, time on a GPU."""
    cpu, gpu = measured("small-cpu"), measured("small-h200")
    rows = [f"notebook|{where('small-cpu')}|main memory there|{where('small-h200')}"]
    for name in (path.stem for path in find_notebooks()):
        here, there = cpu.get(name, {}), gpu.get(name, {})
        more = f" ({there['devices']} GPUs)" if there.get("devices", 1) > 1 else ""
        times = [duration(row.get("seconds")) for row in (here, there)]
        rows.append(f"{name}|{times[0]}|{gigabytes(here.get('resident'))}|{times[1]}{more}")
    return table(rows)


def series_7b(page: Path) -> str:
    """The series on the shape of Llama-2-7B, on a GPU."""
    rows = ["notebook|time|GPU memory|main memory|GPUs|date"]
    for name, row in sorted(measured("7b").items()):
        memory = f"{gigabytes(row['peak_memory'])}|{gigabytes(row['resident'])}"
        rows.append(f"{name}|{duration(row['seconds'])}|{memory}|{row['devices']}|{row['finished'][:10]}")
    return table(rows)


def machine(page: Path) -> str:
    """Instructor: how long the machine works in each notebook."""
    times, rows = measured("small-cpu"), ["notebook|machine time"]
    for name in (path.stem for path in find_notebooks()):
        rows.append(f"{name}|{duration(times.get(name, {}).get('seconds'))}")
    return f"{table(rows)}\n\nMeasured on {where('small-cpu')}."


def seats(page: Path) -> str:
    """Instructor: how many seats fit on one card."""
    return cards.table()


def profiles(page: Path) -> str:
    """Each profile: model, data, rows, steps, adapter, memory."""
    rows = ["profile|model|data|training|longest row, tokens|rank, alpha|GPU memory, LoRA|GPU memory, full"]
    for name, s in PROFILES.items():
        memory = ["-", "-"]
        if name in cards.SHAPE:
            peaks = ([cards.peak(name, method, less) / GB for less in (False, True)] for method in ("lora", "full"))
            memory = [f"{plain:.3g} ({less:.3g}) GB" for plain, less in peaks]
        training = f"{s['train_rows']:,} rows, {s['max_steps']} steps of {s['batch_size']}"
        model, sizes = s["model"].rpartition("/")[2], f"{s['max_length']:,}|{s['rank']}, {s['alpha']}"
        rows.append(f"`{name}`|{model}|{s['data'].rpartition('/')[2]}|{training}|{sizes}|{'|'.join(memory)}")
    return table(rows)


def speed(page: Path) -> str:
    """Tokens per second of the Llama-2-7B shape, by setting."""
    runs = {row["name"]: row for row in load_table("speed-7b")["rows"]}
    rows = ["setting|tokens per second|TFLOP/s|peak memory|loss, first and last step"]
    for name, label in SPEED.items():
        run = runs[name]
        losses = f"{run['first_losses'][0]:.3f}, {run['last_loss']:.3f}"
        rows.append(f"{label}|{run['tokens_per_second']:,}|{run['tflops']}|{run['peak_gb']} GB|{losses}")
    return table(rows)


def unsloth(page: Path) -> str:
    """The same rows through Unsloth: its trainer, and a plain loop over its model."""
    rows = ["setting, compiled|here|Unsloth's trainer|Unsloth's model, plain loop"]
    for row in load_table("unsloth-7b")["rows"]:
        if "here" in row:
            runs = (row["here"], row.get("trainer"), row.get("bare"))
            cells = (f"{run['tokens_per_second']:,}, {run['peak_gb']} GB" if run else "-" for run in runs)
            rows.append(f"{row['name']}|{'|'.join(cells)}")
    return table(rows)


def answers(page: Path) -> str:
    """Seconds for 24 answers, as transformers gives them and with one step captured."""
    known = load_table("answers-7b")
    rows, names = ["24 answers of 128 tokens|first call|third call"], {}
    for row in known["rows"]:
        names.setdefault(row["name"], {})[row["call"]] = row["seconds"]
    labels = {"generate": "`model.generate` of transformers", "one step captured": "`helpers.inference.generate`"}
    rows += [f"{labels[name]}|{calls['first']} s|{calls['third']} s" for name, calls in names.items()]
    return table(rows) + f"\n\n{known['equal_answers']} of {known['of']} answers are equal, token by token."


def two_gpus(page: Path) -> str:
    """One GPU and two, on rows of 2,048 tokens."""
    runs = {(run["method"], run["devices"]): run for run in load_table("two-devices-7b")["runs"]}
    rows = ["method|one H200|two H200|factor"]
    for method in ("lora", "full"):
        rates = [runs[method, count]["tokens_per_second"] for count in (1, 2)]
        peaks = [max(rank["peak"] for rank in runs[method, count]["ranks"]) / GB for count in (1, 2)]
        cells = "|".join(f"{rate:,.0f}, {peak:.1f} GB" for rate, peak in zip(rates, peaks, strict=True))
        rows.append(f"{METHODS[method]}|{cells} each|{rates[1] / rates[0]:.2f}")
    return table(rows)


def story(page: Path) -> str:
    """The one figure, with what it shows as its description and in a sentence."""
    groups = by_method(load_reference("small-cpu"))
    peaks = {m: max(r.memory["predicted"]["total"] for r in runs) / GB for m, runs in groups.items() if m != "base"}
    memory = ", ".join(f"{METHODS[m]} {peak:.2g} GB" for m, peak in peaks.items())
    answers = ", ".join(f"{METHODS[m]} {'{} of {}'.format(*accuracy(runs))}" for m, runs in groups.items())
    image = os.path.relpath(ROOT / "notebooks/images/small-cpu.png", page.parent)
    runs, last = len(groups["lora"]), groups["lora"][-1]
    device = last.device["name"].partition(", ")[0]
    panels = (
        f"Left: training loss with seed 0. Middle: predicted peak memory ({memory}).\n"
        f"Right: correct answers to new questions, {runs} seeds ({answers}), with 95 % intervals."
    )
    return f"![{panels.replace(chr(10), ' ')}]({image})\n\n{panels} Run on {device}, {last.finished[:10]}."


BLOCKS = (notebooks, series_small, series_7b, machine, seats, profiles, speed, unsloth, answers, two_gpus, story)


def pages() -> list[Path]:
    """README and every page in docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def renewed(page: Path) -> str:
    """The text of a page with its generated blocks written anew."""
    write = {function.__name__: function for function in BLOCKS}
    text = page.read_text(encoding="utf-8")
    return BLOCK.sub(lambda block: f"{block[1]}\n{write[block[2]](page)}\n\n{block[3]}", text)


def keep(folder: Path, name: str) -> Path:
    """Keep time and memory of each notebook that passed in a run, such as ``runs/small``, as a table in the reference."""
    from helpers.device import describe

    rows = []
    for notebook, entry in read_json(folder / "status.json", SystemExit, {"notebooks": dict})["notebooks"].items():
        if entry["status"] == "ok":
            rows.append({"notebook": notebook, "seconds": entry["seconds"], "resident": entry.get("peak")})
    target = REFERENCE / f"series-{name}.json"
    content = {"what": f"The series in {folder.name}", "date": now()[:10], "device": describe().name, "rows": rows}
    target.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return target


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m docs.figures", description=__doc__.partition("\n")[0])
    parser.add_argument("keep", nargs="*", metavar="keep FOLDER NAME", help="first keep the times of a run")
    given = parser.parse_args().keep
    if given:
        print(keep(Path(given[1]), given[2]))
    for page in pages():
        if (text := renewed(page)) != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(f"renewed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
