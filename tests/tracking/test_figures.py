"""Every figure draws, for usual and for extreme input, with its text inside the picture."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from tlresearch.run.shift.figure import shift_figure
from tlresearch.run.shift.sets import Shifted
from tlresearch.tracking import figures, sweep_figures
from tlresearch.tracking.figures import PhaseSpan
from tlresearch.tracking.sweep_figures import TrialPoint

PHASES = [PhaseSpan("head only", 0, 2), PhaseSpan("a phase with a very long name", 2, 5)]
IMAGES = [
    np.full((3, 8, 9), 200, dtype=np.uint8),
    np.zeros((8, 9, 3), np.uint8),
    np.zeros((1, 8, 9), np.uint8),
]
TRIALS = [
    TrialPoint(0, 1e-3, 0.8),
    TrialPoint(0, 1e-3, 0.9),
    TrialPoint(2, 1e-4, None, "pruned"),
    TrialPoint(2, 1e-2, None, "failed"),
]

FIGURES = {
    "curves": figures.learning_curves({"train/loss": [(0, 1.0), (1, 0.5)], "val/loss": [(0, math.nan)]}, PHASES),
    "curves of nothing": figures.learning_curves({}),
    "curves of one point": figures.learning_curves({"val/accuracy": [(3, 0.5)]}),
    "confusion matrix": figures.confusion_matrix([[5, 1], [0, 4]], ["ants", "bees"]),
    "confusion matrix of many classes": figures.confusion_matrix(np.eye(120), [f"class {i}" for i in range(120)]),
    "confusion matrix of nothing": figures.confusion_matrix([[0, 0], [0, 0]], ["a", "b"]),
    "samples": figures.sample_grid(IMAGES, ["a"] * 3, ["b"] * 3, [0.9, 0.8, 0.7]),
    "no samples": figures.sample_grid([], [], [], []),
    "schedule": figures.schedule(PHASES, ["stem", "head"], [[None, None, 1e-4, 1e-5, 1e-4], [1e-3] * 5]),
    "schedule of one rate": figures.schedule([], ["head"], [[1e-3, 1e-3]]),
    "schedule of nothing trained": figures.schedule([], ["head"], [[None, math.nan]]),
    "map": sweep_figures.depth_lr_map(TRIALS, "val/accuracy"),
    "map of nothing": sweep_figures.depth_lr_map([], "val/loss", "minimize"),
    "history": sweep_figures.history([(0, 0.5, "complete"), (1, None, "failed"), (2, 0.4, "pruned")], "x", "minimize"),
    "history of nothing": sweep_figures.history([], "x"),
    "importance": sweep_figures.importance({"optimizer.lr": 0.7, "freeze.unfreeze_depth": 0.3}, "val/accuracy"),
    "parallel axes": sweep_figures.parallel_axes(
        [({"a": 1, "b": "x"}, 0.1), ({"a": 100}, 0.3), ({"a": 5, "b": True}, 0.3)], "val/loss", maximize=False
    ),
    "importance of nothing": sweep_figures.importance({}, "val/accuracy"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_draws_with_its_text_inside(name: str) -> None:
    figure: Figure = FIGURES[name]
    figure.savefig(io.BytesIO(), format="png", dpi="figure")
    frame = figure.bbox
    for axes in figure.axes:
        for text in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label):  # type: ignore[attr-defined]
            box = text.get_window_extent()
            if text.get_text():
                assert box.x0 >= frame.x0 - 1, text
                assert box.x1 <= frame.x1 + 1, text
                assert box.y1 <= frame.y1 + 1, text


def test_the_best_trial_is_the_starred_one() -> None:
    figure = sweep_figures.depth_lr_map(TRIALS, "val/loss", "minimize")
    (legend,) = figure.legends
    assert "best: 0.8 " in legend.get_texts()[0].get_text()


def overlapping(texts: list[Text]) -> list[tuple[str, str]]:
    """Pairs of level texts that cover one another."""
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts if text.get_text()]  # without arrows
    return [(a, b) for number, (a, one) in enumerate(boxes) for b, other in boxes[:number] if one.overlaps(other)]


def drawn(figure: Figure) -> Figure:
    figure.savefig(io.BytesIO(), format="png", dpi="figure")
    return figure


def test_names_that_begin_alike_stay_different() -> None:
    salamanders = [f"Northern_spotted_salamander_{number}" for number in range(77)]
    layers = [f"encoder.layer.{number}.attention_output_block" for number in range(26)]
    for names in (salamanders, layers, ["ants", "bees"]):
        short = figures.shortened(names)
        assert len(set(short)) == len(names)
        assert max(map(len, short)) <= 24
    axes = drawn(figures.confusion_matrix(np.eye(77), salamanders)).axes[0]
    assert len({label.get_text() for label in axes.get_yticklabels()}) == len(axes.get_yticks())
    assert not overlapping(axes.get_yticklabels())


def test_labels_of_parallel_axes_do_not_overlap() -> None:
    values = {f"optimizer.a_parameter_with_a_long_name_{number}": number for number in range(9)}
    figure = sweep_figures.parallel_axes([(values, 0.1), (values, 0.2)], "val/balanced_accuracy", maximize=True)
    assert not overlapping(drawn(figure).axes[0].get_xticklabels())


@pytest.mark.parametrize("count", [2, 5, 12, 60])
def test_names_of_phases_do_not_overlap(count: int) -> None:
    phases = [PhaseSpan(f"unfreeze depth {number}", number, number + 1) for number in range(count)]
    rates = [[1e-3] * count for _ in range(4)]
    axes = drawn(figures.schedule(phases, ["a", "b", "c", "head"], rates)).axes[0]
    names = [text for text in axes.texts if text.get_text()]
    assert names
    if count == 2:
        assert not overlapping(names)
    else:  # slanted: their beginnings keep a line's height apart
        places = sorted(axes.transData.transform((text.get_position()[0], 0))[0] for text in names)
        assert min(b - a for a, b in itertools.pairwise(places)) >= 0.11 * 2**0.5 * axes.figure.dpi


def test_names_of_near_sets_do_not_overlap() -> None:
    sets = [Shifted(f"set {n}", 9, "", {"accuracy": 0.8 + n / 1e4}, 0.1, {"mmd": {"top": 0.02}}) for n in range(8)]
    axes = drawn(shift_figure(sets, "accuracy", "test", 0.9)).axes[0]
    assert len(axes.texts) == 8
    assert not overlapping(axes.texts)


def test_a_legend_of_many_classes_fits_its_figure() -> None:
    figure = figures.new_figure(6.0, 3.0)
    figure.add_subplot()
    figures.class_legend(figure, [f"a class with a long name {number}" for number in range(50)], ["red"] * 50)
    box = drawn(figure).legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert figure.legends[0].get_texts()[-1].get_text() == "and 30 more"
