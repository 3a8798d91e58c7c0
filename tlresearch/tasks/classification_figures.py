"""Figures of a classifier's predictions: confusion matrix and the samples it got wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tlresearch.data.base import Data, SplitName
from tlresearch.tracking import figures

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
    targets = data.splits[split].targets[indices]
    confidence, predicted = probabilities.max(dim=1)
    classes = len(data.classes)
    matrix = torch.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)
    found = {"confusion_matrix.png": figures.confusion_matrix(matrix.numpy(), data.classes)}
    wrong = (predicted != targets).nonzero().flatten()
    wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:SHOWN]
    if len(wrong):
        found["wrong_samples.png"] = figures.sample_grid(
            [data.splits[split].raw(int(indices[i])) for i in wrong],
            [data.classes[int(targets[i])] for i in wrong],
            [data.classes[int(predicted[i])] for i in wrong],
            [float(confidence[i]) for i in wrong],
            title=f"Wrongly classified samples of {split}, surest first",
        )
    return found
