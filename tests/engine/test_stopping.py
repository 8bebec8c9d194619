"""The stop button and two trainings of one folder: one sentence each, and nothing left in memory."""

import gc
import os
import re
import subprocess
import sys
import weakref

import helpers.engine.run as run
from helpers.engine.locks import locked
from helpers.engine.preflight import Stopped, TrainingError
from helpers.engine.trainer import Steps
from helpers.headless.display import STOPPED, show_error
from helpers.settings import ROOT, SettingsError, settings_for
from helpers.training import train

import pytest
from IPython.core.interactiveshell import InteractiveShell

SHORT = {"max_steps": 6, "save_steps": 2}


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("load", "after step 0 of 6: no checkpoint was written yet"),
        (1, "after step 1 of 6: no checkpoint was written yet, so run this cell again to start from the first step"),
        (5, "after step 5 of 6: the checkpoint of step 4 is kept, so run this cell again to continue from there"),
        ("save", "after step 6 of 6: the checkpoint of step 6 is kept"),
    ],
)
def test_a_stop_says_what_is_kept_and_frees_the_model(tmp_path, data, monkeypatch, where, said):
    settings, models = settings_for("tiny", "lora", runs_dir=str(tmp_path), **SHORT), []
    real, wrapped = Steps.on_log, run.to_train

    def stop(*_, **__):
        raise KeyboardInterrupt

    def on_log(self, args, state, control, **more):
        real(self, args, state, control, **more)
        if state.global_step == where:
            raise KeyboardInterrupt

    def remembered(*given):
        model = wrapped(*given)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(run, "to_train", remembered)
    monkeypatch.setattr(Steps, "on_log", on_log)
    if isinstance(where, str):
        monkeypatch.setattr(run.Run, where, stop)
    with pytest.raises(Stopped, match=f"you stopped the training {said}") as stopped:
        train(settings, data)
    gc.collect()
    assert all(model() is None for model in models), "the stopped training still holds its model"
    assert stopped.value.__suppress_context__ and not (settings.folder / "record.json").exists()


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_a_second_training_into_one_folder_is_refused_and_into_another_is_not(tmp_path, data, method):
    settings = settings_for("tiny", method, runs_dir=str(tmp_path), max_steps=2)
    hold = f"import pathlib; from helpers.engine.locks import locked\nwith locked(pathlib.Path({str(settings.folder)!r}), OSError): print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    other.stdout.readline()
    with pytest.raises(TrainingError, match=rf"another run is using .* \(process {other.pid}\): wait for it, or"):
        train(settings, data)
    assert not list(settings.folder.iterdir()), "the refused training left something"
    other.communicate("\n", timeout=30)
    with locked(settings.change(seed=1).folder, OSError):
        assert train(settings, data).record.guards


def traceback_of(shell: InteractiveShell, monkeypatch, error: BaseException) -> str:
    """What the notebook shows for an error."""
    said: list[str] = []
    monkeypatch.setattr(shell, "_showtraceback", lambda kind, value, lines: said.extend(lines))
    try:
        raise error
    except BaseException as raised:
        show_error(shell, type(raised), raised, raised.__traceback__)
    return "\n".join(said)


def test_a_notebook_shows_our_errors_in_one_line_and_others_with_their_calls(monkeypatch):
    shell = InteractiveShell()
    assert traceback_of(shell, monkeypatch, KeyboardInterrupt()) == f"Stopped: {STOPPED}"
    assert traceback_of(shell, monkeypatch, Stopped(1, 2, None)).startswith("Stopped: you stopped the training after")
    assert traceback_of(shell, monkeypatch, SettingsError("a sentence")) == "SettingsError: a sentence"
    for missing in ("undefined_name", "len(undefined_name)", "def f():\n    undefined_name\nf()"):
        with pytest.raises(NameError) as unknown:
            exec(missing, shell.user_ns)
        said = traceback_of(shell, monkeypatch, unknown.value)
        assert re.match(
            "NameError: name 'undefined_name' is not defined, in line [12] of this cell. If an earlier", said
        )
    foreign = traceback_of(shell, monkeypatch, ValueError("a value"))
    assert os.path.basename(__file__) in foreign and foreign.count("\n") > 3
