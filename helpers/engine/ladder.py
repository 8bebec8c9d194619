"""How fast a few steps of training are with one lever after another, on the notebooks' own training path."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from helpers.batches import training_order
from helpers.data import Data
from helpers.device import plan
from helpers.engine.monitor import MemoryMonitor
from helpers.engine.paths import compared
from helpers.engine.trainer import Steps, collator, fast, make_trainer
from helpers.memory import free_memory
from helpers.models import load_base, load_tokenizer, to_train
from helpers.settings import Settings
from helpers.sources import quiet, resolve

from transformers import set_seed

WARM = 2  # steps that are not timed: kernels are chosen, memory is taken


def measure(settings: Settings, data: Data, steps: int) -> dict:
    """``WARM`` and then ``steps`` timed optimizer steps of these settings, nothing saved.

    Returns:
        ``tokens_per_second`` of real tokens, ``tokens_per_step``, ``padding`` (share of the tokens worked through),
        ``peak`` (bytes, less what was in use before), ``losses`` of all steps and ``chosen``, the decisions.
    """
    settings = settings.change(max_steps=WARM + steps, save_steps=0, warmup_steps=0)
    base = resolve(settings)
    order, tokenizer = training_order(data, settings), load_tokenizer(base)
    rows = [row for batch in order for row in batch]
    chosen = plan(settings, base.shape, max(len(row.input_ids) for row in rows))
    free_memory()
    with TemporaryDirectory() as folder, MemoryMonitor(chosen.device) as monitor, quiet():
        model = load_base(base, **chosen.loading, four_bit=settings.method == "qlora")
        set_seed(settings.seed)
        model = to_train(model, settings, chosen.value("precision"))
        chosen.decisions.update(
            compared(model, chosen, rows, collator(settings, chosen, tokenizer, order), base.name)[0]
        )
        batches, log = collator(settings, chosen, tokenizer, order), Steps(monitor)
        with fast(model, chosen):
            make_trainer(model, settings.change(runs_dir=folder), chosen, order, tokenizer, batches, log).train()
        del model
    timed = order[WARM * settings.accumulation :]
    real = sum(len(row.input_ids) for batch in timed for row in batch)
    seconds = log.steps[-1]["seconds"] - log.steps[WARM - 1]["seconds"]
    result = {"tokens_per_second": real / seconds, "tokens_per_step": real / steps}
    result |= {"padding": 1 - real / batches.tokens(timed), "peak": monitor.result()["peak"]}
    result |= {"losses": [step["loss"] for step in log.steps]}
    return result | {"chosen": {name: choice["value"] for name, choice in chosen.decisions.items()}}


def climb(settings: Settings, data: Data, rungs: dict[str, dict], steps: int = 4) -> list[dict]:
    """Measure one rung after another; each adds its changes to those below it.

    Args:
        rungs: by name, the settings that the rung changes.

    Returns:
        For each rung ``name``, ``changes`` and what :func:`measure` gives.
    """
    found = []
    for name, changes in rungs.items():
        settings = settings.change(**changes)
        print(name, flush=True)
        found.append({"name": name, "changes": changes, **measure(settings, data, steps)})
        free_memory()
    return found
