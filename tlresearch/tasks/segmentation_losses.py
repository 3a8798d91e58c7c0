"""Losses of segmentation: cross entropy, Dice, focal, and sums of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tlresearch.data.framing import IGNORE

COMBINATIONS: Mapping[str, Mapping[str, float]] = {
    "cross_entropy": {"cross_entropy": 1.0},
    "dice": {"dice": 1.0},
    "focal": {"focal": 1.0},
    "combined": {"cross_entropy": 1.0, "dice": 1.0},
}
"""What a loss by name is made of; ``combined`` is the usual one for unbalanced masks."""


@dataclass(frozen=True)
class SegmentationLoss:
    """A weighted sum of losses over pixels.

    Attributes:
        parts: Weight of each loss by name: cross_entropy, dice, focal.
        gamma: Exponent of the focal loss; 0 is cross entropy.
        class_weights: Weight of each class in cross entropy and focal.
    """

    parts: Mapping[str, float]
    gamma: float = 2.0
    class_weights: Tensor | None = None

    def __call__(self, scores: Tensor, masks: Tensor) -> Tensor:
        """Returns the loss.

        Args:
            scores: Scores ``(batch, classes, H, W)``.
            masks: Class numbers ``(batch, H, W)``; pixels of `IGNORE` do not count.
        """
        # Pixel by pixel: the loss over planes has no deterministic version on a GPU.
        flat = scores.float().permute(0, 2, 3, 1).reshape(-1, scores.shape[1])
        targets = masks.reshape(-1).long()
        weights = self.class_weights.to(scores.device) if self.class_weights is not None else None
        losses: dict[str, Callable[[], Tensor]] = {
            "cross_entropy": lambda: cross_entropy(flat, targets, weights),
            "dice": lambda: dice(flat, targets),
            "focal": lambda: focal(flat, targets, self.gamma, weights),
        }
        return torch.stack([weight * losses[name]() for name, weight in self.parts.items()]).sum()


def cross_entropy(scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean cross entropy of scores ``(pixels, classes)``; 0 where every pixel is ignored."""
    return focal(scores, targets, 0.0, weights)


def focal(scores: Tensor, targets: Tensor, gamma: float = 2.0, weights: Tensor | None = None) -> Tensor:
    """Mean focal loss (Lin et al. 2017): cross entropy times ``(1 - p)**gamma`` of the right class's probability."""
    loss = functional.cross_entropy(scores, targets, ignore_index=IGNORE, reduction="none")
    counted = (targets != IGNORE).float()
    share = counted if weights is None else counted * weights[targets.clamp(max=len(weights) - 1)]
    if gamma:
        share, loss = share, loss * (1 - (-loss).exp()) ** gamma
    return (loss * share).sum() / share.sum().clamp(min=1e-8)


def dice(scores: Tensor, targets: Tensor, smooth: float = 1.0) -> Tensor:
    """Mean over the classes of ``1 - 2 |P T| / (|P| + |T|)`` with probabilities P (Milletari et al. 2016).

    It is taken over all pixels of the batch, so that a class which an image lacks does not count as wrong there.
    """
    counted = (targets != IGNORE)[:, None].float()
    probabilities = scores.softmax(dim=1) * counted
    wanted = functional.one_hot(targets.clamp(max=scores.shape[1] - 1), scores.shape[1]) * counted
    overlap = (probabilities * wanted).sum(dim=0)
    total = probabilities.sum(dim=0) + wanted.sum(dim=0)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()
