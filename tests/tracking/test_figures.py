"""Every figure draws, for usual and for extreme input, with its text inside the picture."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

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
