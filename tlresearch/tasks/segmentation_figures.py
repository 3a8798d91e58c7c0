"""Figures of a segmentation: true and predicted masks laid over the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from tlresearch.data.base import Data, Preprocessing, SplitName
from tlresearch.data.framing import IGNORE
from tlresearch.data.transforms import Evaluation
from tlresearch.tracking.figures import class_legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STRENGTH = 0.5


def overlay_figure(data: Data, split: SplitName, predictions: Mapping[int, Tensor]) -> Figure:
    """Draws one row per sample: the image, the true mask and the predicted one.

    Args:
        data: The data set.
        split: The split that was evaluated.
        predictions: Predicted class numbers ``(H, W)`` by position in the split.
    """
    from matplotlib import colormaps

    assert isinstance(data.preprocessing, Preprocessing)
    evaluation = Evaluation(data.preprocessing)
    few = len(data.classes) <= 10
    palette = [colormaps["tab10" if few else "tab20"](number % 20)[:3] for number in range(len(data.classes))]
    figure = new_figure(8.4, 2.8 * len(predictions) + 0.5)
    grid = figure.subplots(len(predictions), 3, squeeze=False)
    for row, (index, predicted) in zip(grid, sorted(predictions.items()), strict=True):
        image = shown(evaluation.frame(data.splits[split].raw(index)))
        target = data.splits[split].targets[index].numpy()
        row[0].imshow(image)
        row[1].imshow(overlaid(image, target, palette))
        row[2].imshow(overlaid(image, predicted.numpy(), palette))
        row[0].set_title(data.splits[split].names[index][-40:], fontsize=8, loc="left")
        row[1].set_title("true", fontsize=8, loc="left")
        right = (predicted.numpy() == target)[target != IGNORE]
        row[2].set_title(f"predicted, {right.mean() if right.size else 1:.1%} right", fontsize=8, loc="left")
        for axes in row:
            axes.set_axis_off()
    class_legend(figure, data.classes, palette)
    return figure


def shown(image: Tensor) -> Any:
    """Returns an image ``(C, H, W)`` as an array ``(H, W, 3)``: grey for any number of channels but three."""
    pixels = image.numpy()
    if len(pixels) != 3:
        pixels = np.repeat(pixels.mean(axis=0, keepdims=True).astype(np.uint8), 3, axis=0)
    return pixels.transpose(1, 2, 0)


def overlaid(image: Any, mask: Any, palette: Sequence[Sequence[float]]) -> Any:
    """Mixes class colours into an image; pixels that do not count stay as they are."""
    colours = (255 * np.array([*palette, (0.0, 0.0, 0.0)])).astype(np.uint8)
    mixed = (1 - _STRENGTH) * image + _STRENGTH * colours[np.minimum(mask, len(palette))]
    return np.where((mask == IGNORE)[..., None], image, mixed).astype(np.uint8)
