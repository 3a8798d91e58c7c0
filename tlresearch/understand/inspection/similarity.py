"""Linear centred kernel alignment (CKA): how alike two networks represent the same samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Alignment:
    """Linear CKA gathered over batches, as Nguyen et al. 2021 (arXiv 2010.15327) do it.

    The three independence criteria of Kornblith et al. 2019 are estimated without bias on each batch (Song et al. 2012)
    and averaged, so that the value does not depend on the size of the batches, and activations need not be kept.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)

    def update(self, first: Tensor, second: Tensor) -> None:
        """Takes a batch in.

        Args:
            first: Activations of one network ``(batch, ...)``; at least four samples.
            second: Those of the other for the same samples ``(batch, ...)``; of any other shape.
        """
        one, other = _kernel(first), _kernel(second)
        self._sums += torch.stack([independence(one, other), independence(one, one), independence(other, other)]).cpu()

    @property
    def value(self) -> float:
        """1 for representations equal up to rotation and scale, about 0 for unrelated ones; NaN without samples."""
        both, first, second = self._sums.tolist()
        return both / math.sqrt(first * second) if first > 0 and second > 0 else math.nan


def independence(one: Tensor, other: Tensor) -> Tensor:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion of two kernels ``(n, n)`` (Song et al. 2012)."""
    count = len(one)
    one, other = one - one.diag().diag(), other - other.diag().diag()
    trace = (one * other).sum()
    means = one.sum() * other.sum() / ((count - 1) * (count - 2))
    cross = (one.sum(dim=0) * other.sum(dim=0)).sum() * 2 / (count - 2)
    return (trace + means - cross) / (count * (count - 3))


def _kernel(activations: Tensor) -> Tensor:
    flat = activations.flatten(1).double()
    return flat @ flat.T
