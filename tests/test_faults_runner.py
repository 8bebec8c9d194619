"""Each fault of a headless run, injected: it is said what stopped, nothing is left behind, nothing that passed is lost."""

import json
import os
import re
import signal
import time

from helpers.headless.masking import mask_secrets
from helpers.headless.parameters import UsageError, find_notebooks, parse_parameters
from helpers.headless.processes import locked
from helpers.headless.runner import EXIT
from helpers.headless.status import Status, digest
from helpers.records import RunRecord
from helpers.settings import ROOT

import nbformat
import psutil
import pytest

SECRET = "hf_" + "a" * 24
CHILD = (  # in a session of its own, started by a cell that ignores Ctrl-C
    "import os, signal, subprocess, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    "child = subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
    "open('pids', 'w').write(f'{child.pid} {os.getpid()}')\n"
)
DEAF = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # also in the child: only SIGKILL ends them


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pids(book) -> list[int]:
    """Of the child and of the kernel that CHILD wrote down, once it did."""
    file, deadline = book.folder / "pids", time.monotonic() + 60
    while not (file.is_file() and len(file.read_text().split()) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return [int(pid) for pid in file.read_text().split()]


def test_row_01_killed_kernel_and_row_05_its_child(book):
    book.write("00_killed", CHILD + "print('the last words', flush=True)\ntime.sleep(1)\nos.kill(os.getpid(), 9)", "1")
    assert book.run() == "killed" and EXIT["killed"] == 137
    entry = book.entry("00_killed")
    assert entry["status"] == "killed" and entry["cell"] == 3 and "the kernel died" in entry["why"]
    assert "the last words" in entry["last_lines"] and "the last words</pre>" in book.page()
    assert book.lines[-2].startswith("00_killed  killed in cell 3 of 4 after ")
    assert not [pid for pid in pids(book) if alive(pid)]


def test_row_02_a_notebook_over_its_limit(book):
    book.write("00_slow", "1", "import time\nfor i in range(600):\n    print('at', i, flush=True)\n    time.sleep(0.1)")
    assert book.run(notebook_timeout=5) == "timed out" and EXIT["timed out"] == 124
    entry = book.entry("00_slow")
    assert entry["why"] == "the notebook ran longer than 5 s (--notebook-timeout)" and entry["cell"] == 4
    assert "at 0" in (book.out / "notebooks/00_slow.ipynb").read_text(), "what a cell printed before the limit is kept"


def test_row_03_a_cell_that_ignores_signals(book):
    book.write("00_deaf", DEAF + CHILD + "time.sleep(300)")
    assert book.run(cell_timeout=2) == "timed out"
    assert (
        book.entry("00_deaf")["why"] == "the cell ran longer than 2 s (--cell-timeout)"
        and book.entry("00_deaf")["cell"] == 3
    )
    assert not [pid for pid in pids(book) if alive(pid)]


def test_row_04_a_cancelled_run_and_row_13_going_on(book):
    """The command line, stopped three times in its second notebook; then to the end. The first runs only once."""
    book.write("00_first", "1")
    hold = book.folder / "hold"
    hold.touch()
    book.write("01_second", CHILD + f"while os.path.exists({str(hold)!r}):\n    time.sleep(0.1)")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        runner = book.start()
        left = pids(book)
        runner.send_signal(number)
        said = runner.communicate(timeout=30)[0]
        assert ("00_first  passed before" in said) == (number != signal.SIGINT)
        if number == signal.SIGKILL:  # what it started notices that the runner is gone
            psutil.wait_procs([psutil.Process(pid) for pid in left if psutil.pid_exists(pid)], timeout=20)
            assert book.entry("01_second")["status"] == "running"
        else:
            assert runner.returncode == EXIT["interrupted"] == 130
            entry = book.entry("01_second")
            assert entry["status"] == "interrupted" and entry["cell"] == 3
            assert f"stopped by {number.name}; the same command goes on from here" in said
        assert not [pid for pid in left if alive(pid)]
        (book.folder / "pids").unlink()

    hold.unlink()
    assert book.run() == "ok"
    assert "00_first  passed before, nothing changed" in book.lines and "01_second  running" in book.lines


def test_row_06_exit_0_in_a_cell(book):
    book.write("00_exit", "import sys; sys.exit(0)", "print('never')")
    assert book.run() == "failed" and EXIT["failed"] == 1
    assert book.entry("00_exit")["why"] == "it ended with SystemExit: 0, and the cells after it never ran"


def shell_lines(source: str) -> list[str]:
    """Lines that IPython hands to a shell, whose failure is no failure of the cell."""
    return re.findall(r"^\s*(?:!.*|%%?(?:sh|bash|system|sx)\b.*)|=\s*!.*", source, re.MULTILINE)


def test_row_07_a_failing_command_and_row_10_a_secret_in_an_output(book, monkeypatch):
    assert shell_lines("!exit 3") and shell_lines("x = !ls") and shell_lines("%%bash\nls") and not shell_lines("a != b")
    for notebook in (ROOT / "notebooks").rglob("*.ipynb"):
        for cell in nbformat.read(notebook, 4).cells:
            assert cell.cell_type != "code" or not shell_lines(cell.source), notebook

    monkeypatch.setenv("OWN_API_KEY", "not-like-any-token-1")
    book.write(
        "00_command",
        f"import os, subprocess\nprint('{SECRET[:9]}', end='', flush=True); print('{SECRET[9:]}', os.environ['OWN_API_KEY'])\n"
        f"subprocess.run(['sh', '-c', 'exit 3', '{SECRET}'], check=True)",
    )
    assert book.run() == "failed" and book.entry("00_command")["why"].startswith("CalledProcessError: Command")
    assert "exit status 3" in book.lines[-2] and "returned non-zero exit status 3" in book.page()
    for text in ["\n".join(book.lines), *(f.read_text() for f in book.out.rglob("*") if f.is_file())]:
        assert SECRET not in text and "not-like-any-token-1" not in text
    assert "***" in book.entry("00_command")["last_lines"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lrr=5", "no notebook that would run has a parameter 'lrr'; known: "),
        ("max_step=5", "did you mean 'max_steps'?"),
        ("max_new_token=5", "did you mean 'max_new_tokens'?"),
        ("profile=small", "give it as PROFILE="),
        ("seed=1 seed=2", "seed is given twice"),
        ("seed", "'seed' is not of the form name=value"),
        ("seed=", "'seed=' is not of the form name=value"),
        ("data=my file.jsonl", "'file.jsonl' is not of the form name=value (no spaces"),
    ],
)
def test_row_08_a_parameter_name_with_a_typo(text, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        parse_parameters(text, find_notebooks())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_steps=false", "max_steps must be a whole number, not 'false'"),
        ("max_steps=1e3", "max_steps must be a whole number, not '1e3'"),
        ("max_steps=0", "max_steps must be at least 1"),
        ("learning_rate=fast", "learning_rate must be a number, not 'fast'"),
        ("learning_rate=nan", "learning_rate must be"),
        ("seed=99999999999", "seed must be below 4294967296"),
        ({"seed": 1.5}, "seed must be of type int, not float"),
        ({"learning_rate": True}, "learning_rate must be of type float, not bool"),
    ],
)
def test_row_09_a_parameter_of_a_wrong_type(text, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        parse_parameters(text, find_notebooks())


def test_row_09_right_parameters_get_their_types():
    asked = parse_parameters("max_steps=5 learning_rate=1e-4 seed=1 max_new_tokens=9", find_notebooks())
    assert asked == {"max_steps": 5, "learning_rate": 1e-4, "seed": 1, "max_new_tokens": 9}
    assert parse_parameters({"learning_rate": 1e-4, "seed": "1"}, find_notebooks()) == {
        "learning_rate": 1e-4,
        "seed": 1,
    }


@pytest.mark.parametrize("text", [f"hf_token={SECRET}", "api_key=1", "HF_TOKEN=x", "my_password=x", f"data={SECRET}"])
def test_row_10_a_secret_as_a_parameter(book, text):
    book.write("00_any", "1")
    with pytest.raises(UsageError, match="looks like a secret: parameters are saved") as error:
        book.run(parameters=text)
    assert SECRET not in str(error.value) and not book.out.exists(), "nothing was started"


def test_row_10_what_counts_as_a_secret(monkeypatch):
    assert mask_secrets("token hf_abcdefghijklmnop1234 end, half of it") == "token *** end, half of it"
    assert mask_secrets("https://me:hunter2@example.org/x") == "https://***@example.org/x"
    monkeypatch.setenv("SERVICE_PASSWORD", "tr0ub4dor&3")
    monkeypatch.setenv("TOKEN_CACHE", "disabled")
    assert mask_secrets({"a": ["tr0ub4dor&3 disabled", 1]}) == {"a": ["*** disabled", 1]}


def test_row_11_disk_full_while_writing(book):
    book.write("00_large", "print('x' * 10)")
    assert book.run() == "ok"
    former = {f: f.read_bytes() for f in (book.out / "notebooks").iterdir()}
    book.write("00_large", "print('x' * 300_000)")
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    runner = book.start(before=full)
    out, errors = runner.communicate(timeout=60)
    assert runner.returncode == EXIT["failed"] and not errors
    assert "could not be written: File too large; free some space" in out
    assert book.entry("00_large")["status"] == "failed"
    assert {f: f.read_bytes() for f in (book.out / "notebooks").iterdir()} == former, "the former files are whole"

    runner = book.start(before="import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))")
    errors = runner.communicate(timeout=60)[1]
    assert runner.returncode == 2 and errors.startswith("error: ") and "File too large" in errors
    assert json.loads((book.out / "status.json").read_text())["notebooks"]


def test_row_12_two_runs_into_one_folder(book):
    book.write("00_any", "1")
    with locked(book.out):
        runner = book.start()
        out, errors = runner.communicate(timeout=60)
        assert runner.returncode == 2 and not out
        assert errors == (
            f"error: another run is using {book.out} (process {os.getpid()}): wait for it, or choose another RUNS_DIR\n"
        )
    with locked(book.out):
        pass  # the lock ends with its holder


def test_row_13_only_what_changed_is_run_again(book, monkeypatch):
    """Decided from the status file alone, so without a kernel."""
    first, second = book.write("00_first", "1", records=["lora"]), book.write("01_second", "2")
    data = book.folder / "rows.jsonl"
    data.write_text("{}")
    given = {"seed": 0, "data": str(data)}
    monkeypatch.setattr("helpers.headless.status.ROOT", book.folder)  # its helpers/ is what the digest covers
    (book.folder / "helpers").mkdir()
    code = book.folder / "helpers/any.py"
    code.touch()

    def passed(finished="2026-01-01T00:00:02Z") -> Status:
        RunRecord("lora", "tiny", 0, finished=finished).save(book.out / "lora-s0")
        status = Status(book.out, "tiny")
        (book.out / "notebooks").mkdir(exist_ok=True)
        for notebook in (first, second):
            status.update(notebook, status="ok", digest=digest(notebook, given), finished=finished)
            status.executed(notebook).touch()
        return status

    def again() -> list[str]:
        status = Status(book.out, "tiny")
        return [n.stem for n in (first, second) if not status.up_to_date(n, given)]

    passed()
    assert again() == []
    book.write("01_second", "3")
    assert again() == ["01_second"]
    passed()
    given["seed"] = 1
    assert again() == ["00_first", "01_second"]
    given["seed"] = 0
    data.write_text("{} ")
    assert again() == ["00_first", "01_second"]
    passed()
    code.write_text("1")
    assert again() == ["00_first", "01_second"]
    passed()
    (book.out / "lora-s0/record.json").unlink()
    assert again() == ["00_first"]
    passed().update(first, finished="2026-01-01T00:00:03Z")
    assert again() == ["01_second"], "what a notebook before it wrote is newer"
    (book.out / "status.json").write_text('{"notebooks": [')
    assert again() == ["00_first", "01_second"] and Status(book.out, "tiny").damaged


def run_cells(name: str, last: str, **parameters) -> None:
    """Execute the code cells of a notebook of the series in this process, up to the one that holds ``last``."""
    space: dict = {}
    for cell in nbformat.read(ROOT / "notebooks" / name, 4).cells:
        if cell.cell_type == "code":
            exec(cell.source, space)
            if "parameters" in cell.metadata.get("tags", []):
                space |= parameters
            if last in cell.source:
                return


def test_row_39_an_earlier_notebook_not_run(tmp_path, capsys):
    nowhere = {"profile": "tiny", "runs_dir": str(tmp_path)}
    run_cells("04_compare.ipynb", "load_series(", **nowhere)
    assert "02_lora_train and 03_full_train make them" in capsys.readouterr().out
    with pytest.raises(Exception, match="there is no finished lora run in .*: run 02_lora_train with these parameters"):
        run_cells("05_inference.ipynb", "finished_folder(", **nowhere)
    assert not list(tmp_path.iterdir())
