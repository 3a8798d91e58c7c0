"""Counts of right, predicted and true samples (or pixels) by class, and the metrics that follow from them alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class Counts(NamedTuple):
    """How often each class was right, predicted and true; int64 ``(classes,)`` each."""

    right: Tensor
    predicted: Tensor
    true: Tensor

    def means(self) -> dict[str, Tensor]:
        """Returns ``accuracy``, and ``balanced_accuracy`` (mean recall) and ``macro_f1``, means over the classes.

        A class that is neither there nor predicted is left out of the means; one that has nothing to divide by is 0.
        They equal torchmetrics' ``MulticlassAccuracy(average="micro")``, ``MulticlassRecall`` and
        ``MulticlassF1Score`` to the bit.
        """
        right, predicted, true = (count.float() for count in self)
        seen = ((predicted + true) > 0).float()
        return {
            "accuracy": _share(right.sum(), true.sum()),
            "balanced_accuracy": _share(seen * _share(right, true), seen.sum()).sum(),
            "macro_f1": _share(seen * _share(2 * right, predicted + true), seen.sum()).sum(),
        }


class ClassCounts(Metric):
    """Right, predicted and true samples of each class.

    torchmetrics counts through a table of classes times classes, and in deterministic mode compares every sample with
    every cell of it: 1500 classes cost 3 s and 5 GB a batch. Whole numbers add up to the same sum in any order, so
    nothing has to be avoided here, and the cost grows with samples plus classes.

    Args:
        classes: Number of classes.
        ignored: Class number of samples that do not count.
    """

    full_state_update = False
    right: Tensor
    predicted: Tensor
    true: Tensor

    def __init__(self, classes: int, *, ignored: int | None = None) -> None:
        super().__init__()
        self.classes = classes
        self.ignored = ignored
        for name in ("right", "predicted", "true"):
            self.add_state(name, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, targets: Tensor) -> None:
        """Takes class numbers of any, and equal, shape."""
        predicted, targets = predicted.flatten().long(), targets.flatten().long()
        if self.ignored is not None:
            counted = targets != self.ignored
            predicted, targets = predicted[counted], targets[counted]
        self.right += self._count(targets[predicted == targets])
        self.predicted += self._count(predicted)
        self.true += self._count(targets)

    def compute(self) -> Counts:
        """Returns the counts, of all devices together."""
        return Counts(self.right, self.predicted, self.true)

    def _count(self, numbers: Tensor) -> Tensor:
        return torch.bincount(numbers, minlength=self.classes)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Divides, with 0 where there is nothing to divide by."""
    return torch.where(whole != 0, part / whole, torch.zeros(()).to(part))
