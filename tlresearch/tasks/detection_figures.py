"""Figures of a detector: true and detected boxes, and masks where it has some, drawn into the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tlresearch.data.base import Data, Preprocessing, SplitName
from tlresearch.data.transforms import Evaluation
from tlresearch.tasks.segmentation_figures import shown
from tlresearch.tracking.figures import class_legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SURE = 0.5
"""Detections below this score are not drawn."""


def detections_figure(
    data: Data,
    split: SplitName,
    targets: Mapping[int, Mapping[str, Tensor]],
    predictions: Mapping[int, Mapping[str, Tensor]],
) -> Figure:
    """Draws one row per sample: the true boxes, and the detected ones with their scores.

    Args:
        data: The data set.
        split: The split that was evaluated.
        targets: True boxes by position in the split; see `DetectionHead.as_given`.
        predictions: Detections by position in the split; see `Detections`.
    """
    from matplotlib import colormaps

    assert isinstance(data.preprocessing, Preprocessing)
    evaluation = Evaluation(data.preprocessing)
    palette = [colormaps["tab10"](number % 10) for number in range(len(data.classes))]
    figure = new_figure(9.0, 4.3 * len(predictions) + 0.5)
    grid = figure.subplots(len(predictions), 2, squeeze=False)
    for (left, right), (index, found) in zip(grid, sorted(predictions.items()), strict=True):
        image = shown(evaluation.frame(data.splits[split].raw(index)))
        kept = found["scores"] >= SURE
        left.imshow(image)
        right.imshow(image)
        _draw(left, targets[index], palette)
        _draw(right, {name: leaf[kept] for name, leaf in found.items()}, palette)
        left.set_title(f"{data.splits[split].names[index][-40:]}: true", fontsize=8, loc="left")
        right.set_title(f"detected with a score of at least {SURE}", fontsize=8, loc="left")
        left.set_axis_off()
        right.set_axis_off()
    class_legend(figure, data.classes, palette)
    return figure


def _draw(axes: Any, found: Mapping[str, Tensor], palette: list[Any]) -> None:
    from matplotlib.patches import Rectangle

    scores = found.get("scores")
    if "masks" in found:
        axes.imshow(_objects(found["masks"] > 0))
    for number, ((x0, y0, x1, y1), label) in enumerate(
        zip(found["boxes"].tolist(), found["labels"].tolist(), strict=True)
    ):
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=1.2, edgecolor=palette[label]))
        if scores is not None:
            axes.text(x0, y0 - 1, f"{float(scores[number]):.2f}", fontsize=6, color=palette[label], va="bottom")


def _objects(masks: Tensor) -> Any:
    """A colour for each object, so that neighbours of one class are told apart; the first ones are on top."""
    from matplotlib import colormaps

    overlay = torch.zeros(*masks.shape[1:], 4)
    for number in reversed(range(len(masks))):
        overlay[masks[number]] = torch.tensor([*colormaps["tab20"](number % 20)[:3], 0.5], dtype=overlay.dtype)
    return overlay.numpy()
