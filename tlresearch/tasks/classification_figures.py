"""Figures of a classifier's predictions: confusion matrix and the samples it got wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tlresearch.data.base import Data, SplitName
from tlresearch.tracking import figures
from tlresearch.tracking.text_figures import wrong_texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 20
"""Most samples in the grid of wrong ones."""


def prediction_figures(data: Data, split: SplitName, indices: Tensor, probabilities: Tensor) -> dict[str, Figure]:
    """Draws what a classifier said of a split.

    Args:
        data: The data set.
        split: The split that was evaluated.
        indices: Positions in the split, ``(samples,)``.
        probabilities: Probability per class, ``(samples, classes)``.

    Returns:
        Figures by file name. Several labels per sample have no confusion matrix: they get none.
    """
    if data.kind == "multilabel":
        return {}
    targets = torch.as_tensor(data.splits[split].targets)[indices]
    confidence, predicted = probabilities.max(dim=1)
    classes = len(data.classes)
    matrix = torch.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)
    found = {"confusion_matrix.png": figures.confusion_matrix(matrix.numpy(), data.classes)}
    wrong = (predicted != targets).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN]
    if len(wrong):
        positions = [int(indices[i]) for i in wrong]
        samples = [data.splits[split].raw(position) for position in positions]
        draw: Callable[..., Figure] = figures.sample_grid
        if not all(is_picture(sample) for sample in samples):
            names = [data.splits[split].names[position] for position in positions]
            samples = [sample if isinstance(sample, str) else name for sample, name in zip(samples, names, strict=True)]
            draw = wrong_texts
        found["wrong_samples.png"] = draw(
            samples,
            [data.classes[int(targets[i])] for i in wrong],
            [data.classes[int(predicted[i])] for i in wrong],
            [float(confidence[i]) for i in wrong],
            title=f"Wrongly classified samples of {split}, surest first",
        )
    return found


def is_picture(sample: Any) -> bool:
    """Whether a raw sample can be drawn as an image; others are shown as text, or by their name."""
    return isinstance(sample, Tensor) and sample.ndim == 3 and sample.shape[0] in (1, 3, 4)
