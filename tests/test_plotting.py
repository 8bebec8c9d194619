"""Figures stay readable at sizes that the default run does not have."""

from dataclasses import replace
from types import SimpleNamespace

from helpers import plotting
from helpers.records import load_reference, load_table

import matplotlib.pyplot as plt
import pytest


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.mark.parametrize("losses", [(11.2, 9.5), (1.6, 1.15), (1.6, 0.9), (12.0, 3.5), (2.0, 0.04)])
def test_a_loss_axis_has_several_numbers_however_little_it_spans(axes, losses):
    steps = [{"step": number + 1, "loss": loss} for number, loss in enumerate(losses)]
    plotting.loss_curves([SimpleNamespace(steps=steps, data={}, method="lora", seed=0)], axes)
    low, high = axes.get_ylim()
    assert len({tick.get_text() for tick in axes.get_yticklabels() if low <= tick.get_position()[1] <= high}) >= 3
    assert all(tick == int(tick) for tick in axes.get_xticks())


def test_questions_and_conversations_are_lines_of_their_own(axes):
    (run,) = [r for r in load_reference("small-h200") if (r.method, r.seed) == ("lora", 0)]
    losses = [step["loss"] for step in run.steps]
    run.data["scored"] = [0.5 if number % 10 == 0 else float(loss < 2) for number, loss in enumerate(losses)]
    plotting.loss_curves([run], axes)
    questions, conversations, both = axes.lines
    assert (questions.get_label(), conversations.get_label()) == ("lora questions", "lora conversations")
    assert max(questions.get_ydata()) < 2 < min(conversations.get_ydata())
    assert len(both.get_ydata()) == 12 == len(losses) - len(questions.get_ydata()) - len(conversations.get_ydata())
    assert f"conversations {conversations.get_ydata()[-1]:.2g}" in axes.get_title()
    plotting.loss_curves([replace(run, steps=run.steps[:12])], axes)
    assert axes.lines[3].get_xdata()[-1] <= 12


@pytest.mark.parametrize("ceiling", [100_000, 1_800_000])
def test_bars_can_be_seen_beside_any_ceiling(axes, ceiling):
    plotting.rungs([{"name": "bf16", "tokens_per_second": 40_000}], axes, ceiling)
    assert axes.get_xlim()[1] < 8 * 40_000 and f"{ceiling:,}" in axes.get_legend().get_texts()[0].get_text()


def test_the_points_of_the_growth_figure_fill_it_and_none_is_cut_off():
    figure, panels = plt.subplots(1, 3, sharey=True)
    plotting.growth(load_table("growth-7b")["rows"], panels)
    best = max(max(line.get_ydata()) for axes in panels for line in axes.lines)
    assert 0.8 < best / panels[0].get_ylim()[1] < 0.95
    plt.close(figure)


def test_a_sweep_marks_what_diverged_and_says_how_far_seeds_lie_apart(axes):
    runs = load_table("sweep-small")["runs"]
    lora = [r for r in runs if r["method"] == "lora"]
    diverged = sum(r["diverged"] for r in lora)
    plotting.sweep(lora, axes)
    crosses = next(line for line in axes.lines if line.get_marker() == "x")
    assert diverged and len(crosses.get_xdata()) == diverged and f"diverged: {diverged} of" in crosses.get_label()
    assert {line.get_color() for line in axes.lines} == {plotting.COLOURS["lora"], "black"}
    assert "seeds of one setting differ by up to" in axes.get_title()
