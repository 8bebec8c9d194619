"""The series itself: its structure, found by glob, and one headless run on the tiny profile, asserted on many times."""

import ast
import json
import re

from docs import figures
from helpers import records
from helpers.comparison import comparability
from helpers.headless.parameters import find_notebooks, parameters_of
from helpers.headless.runner import run_all
from helpers.settings import ROOT, settings_for

import nbformat
import pytest

NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
SERIES = find_notebooks()


def code_cells(path):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def prose(path) -> str:
    return "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")


@pytest.fixture(params=SERIES, ids=lambda p: p.stem)
def notebook(request):
    return request.param


def test_the_core_is_there_in_order():
    assert [p.stem for p in SERIES][:6] == [
        "00_setup_check", "01_data", "02_lora_train", "03_full_train", "04_compare", "05_inference",
    ]  # fmt: skip


def test_valid_and_committed_without_outputs(notebook):
    content = nbformat.read(notebook, 4)
    nbformat.validate(content)
    assert "widgets" not in content.metadata
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None


def test_one_parameters_cell_of_at_most_eight_literals(notebook):
    tagged = [c for c in code_cells(notebook) if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    body = ast.parse(tagged[0].source).body
    assert 1 <= len(body) <= 8
    for node in body:
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)


def test_parameters_are_settings_and_reach_them(notebook):
    defaults = parameters_of(notebook)
    changes = {k: v for k, v in defaults.items() if k != "profile"}
    assert settings_for(defaults["profile"], **changes).profile == defaults["profile"] == "small"


def test_plain_python_without_magic_or_secrets(notebook):
    for cell in code_cells(notebook):
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), cell.source
        assert "tqdm.auto" not in cell.source and "trust_remote_code=True" not in cell.source
        assert not re.search(r"hf_[A-Za-z0-9]{10}|login\(", cell.source)


def test_cells_are_short(notebook):
    lengths = [len(c.source.splitlines()) for c in code_cells(notebook)]
    assert sorted(lengths)[6 * len(lengths) // 10] <= 15
    assert max(lengths) <= 45, notebook


def test_the_core_has_short_cells_and_few_imports_at_its_start(notebook):
    if notebook.stem > "06":
        pytest.skip("beyond the core")
    cells = code_cells(notebook)
    long = [c.source.splitlines()[0] for c in cells if len(c.source.splitlines()) > 15]
    assert not long, long
    assert sum(line.startswith(("import ", "from ")) for line in cells[0].source.splitlines()) <= 8


def test_each_section_of_the_core_opens_with_a_question(notebook):
    """Its heading asks, or the reader is told to predict or to write something before the next step."""
    if notebook.stem > "06":
        pytest.skip("beyond the core")
    text = "\n".join(c.source for c in nbformat.read(notebook, 4).cells).partition("## What you saw")[0]
    for section in re.split(r"^## (?=\d)", text, flags=re.MULTILINE)[1:]:
        heading = section.splitlines()[0]
        assert heading.endswith("?") or "**Predict:**" in section or "**Write it:**" in section, heading


def test_anatomy(notebook):
    text = prose(notebook)
    first = nbformat.read(notebook, 4).cells[0].source
    assert first.startswith("# ")
    for part in ("You will do", "You will learn", "You need"):
        assert part in first, part
    for heading in ("What you saw", "Exercises", "In practice", "Next"):
        assert f"\n## {heading}" in text or text.startswith(f"## {heading}"), heading
    assert "MEASURED" not in text, "a measured figure is still missing"


def test_a_notebook_quotes_the_time_and_memory_that_were_measured(notebook):
    opening = prose(notebook).partition("**Measured**")[2].partition("\n\n")[0]
    if not opening:
        pytest.skip("it quotes no measurement")
    row = figures.measured("small-cpu")[notebook.stem]
    assert figures.duration(row["seconds"]) in opening and figures.gigabytes(row["resident"]) in opening


def test_prose_comes_before_code(notebook):
    cells = nbformat.read(notebook, 4).cells
    bare = sum(a.cell_type == b.cell_type == "code" for a, b in zip(cells, cells[1:], strict=False))
    assert bare <= 6  # imports, parameters and settings may follow each other


def test_links_exist(notebook):
    for link in re.findall(r"\]\(([^)#]+)", prose(notebook)):
        if not link.startswith("http"):
            assert (notebook.parent / link).exists(), link


def test_one_prose_for_all_devices(notebook):
    """No cell asks for a vendor before it runs: the same code serves ROCm, CUDA and CPU."""
    for cell in code_cells(notebook):
        assert 'torch.device("cuda' not in cell.source and ".cuda()" not in cell.source


# --- the run ------------------------------------------------------------------------------------------------------


def test_every_notebook_passes(series):
    status = json.loads((series.folder / "status.json").read_text())["notebooks"]
    assert series.end == "ok", status
    assert list(status) == [p.stem for p in SERIES]
    assert series.lines[-1] == f"All passed. Open {series.folder / 'index.html'}"
    page = (series.folder / "index.html").read_text()
    assert all(f'href="notebooks/{p.stem}.html"' in page for p in SERIES)


def outputs(series, notebook):
    executed = nbformat.read(series.folder / "notebooks" / notebook.name, 4)
    return [o for c in executed.cells if c.cell_type == "code" for o in c.outputs]


def test_no_errors_no_warnings_and_figures_that_show(series, notebook):
    kinds = outputs(series, notebook)
    assert not [o for o in kinds if o.output_type == "error"]
    noise = "".join(o.text for o in kinds if o.get("name") == "stderr")
    noise = "\n".join(line for line in noise.splitlines() if "step" not in line)  # the progress bar
    assert "Warning" not in noise and "Error" not in noise, noise
    images = [o for o in kinds if "image/png" in o.get("data", {})]
    assert images or notebook.stem.startswith("05"), "no figure"


def test_executed_pages_hold_their_formulas_and_figures_without_a_network(series, notebook):
    page = (series.folder / "notebooks" / f"{notebook.stem}.html").read_text()
    assert "$$" not in re.sub(r"<(script|style|pre).*?</\1>", "", page, flags=re.DOTALL)
    assert not re.findall(r'<(?:script|img)[^>]+src="http', page)


def test_records_of_the_series_compare(series):
    found = records.load_series(series.folder)
    shared = comparability(found)
    assert shared["base model"] and shared["evaluation rows"]
    by_method = {r.method: r for r in found}
    base, lora, full = (by_method[method] for method in ("base", "lora", "full"))
    assert lora.evaluation["loss"] < base.evaluation["loss"] and full.evaluation["loss"] < base.evaluation["loss"]
    assert lora.training["trainable"] < full.training["trainable"] == full.model["parameters"]
    assert sum(lora.files.values()) < sum(full.files.values())
    assert full.status == "ok" and full.commit


def test_notebook_and_helpers_agree_on_the_adapter(series, runs):
    """02 writes its LoraConfig out; the run must equal one with the helpers' configuration."""
    lora = next(r for r in records.load_series(series.folder) if r.method == "lora")
    assert [s["loss"] for s in lora.steps] == [s["loss"] for s in runs.lora.record.steps]


def test_progress_says_how_many_devices_train(series):
    text = "".join(o.get("text", "") for o in outputs(series, SERIES[7]))
    for training in ("lora on 1 device:", "lora on 2 devices:", "full on 1 device:", "full on 2 devices:"):
        assert training in text


def test_compare_ends_in_computed_sentences(series):
    text = json.dumps([o.get("data", {}) for o in outputs(series, SERIES[4])])
    assert "Accuracy:" in text and "times as much memory at its peak as" in text


def test_nothing_of_the_machine_is_printed(series, notebook):
    text = json.dumps([{k: v for k, v in o.items() if k != "metadata"} for o in outputs(series, notebook)])
    assert str(ROOT) not in text


def test_the_comparison_works_with_the_reference_records_alone(tmp_path):
    """As for a reader who has trained nothing yet; no model is needed, so the default profile will do."""
    assert run_all("small", notebooks="04", runs_dir=str(tmp_path), say=print) == "ok"


def test_each_trainer_of_a_notebook_takes_one_gpu_where_there_are_more():
    """TRL's trainers stop with an error where one process sees several; those of transformers would split each batch."""
    found = 0
    for path in NOTEBOOKS:
        for cell in (c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"):
            if made := re.search(r"\b(?:SFT|GRPO|DPO|)Trainer\(", cell):
                found += 1
                assert re.search(r"(\w+)\._n_gpu = min\(\1\.n_gpu, 1\)", cell[: made.start()]), (path.name, cell[:80])
    assert found == 5
