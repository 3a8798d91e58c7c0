"""A task of one's own: a class derived from one that is there; here classification with the focal loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from tlresearch.tasks.classification import ClassificationTask


class Focal(ClassificationTask):
    """Classification whose loss looks away from samples that are right already (Lin et al., ICCV 2017)."""

    defaults = {"gamma": 2.0}  # noqa: RUF012
    """How strongly, as `task.options.gamma`; 0 is cross entropy."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean focal loss of a batch."""
        each = functional.cross_entropy(outputs, targets, reduction="none")
        return ((1 - (-each).exp()) ** float(self.options["gamma"]) * each).mean()
