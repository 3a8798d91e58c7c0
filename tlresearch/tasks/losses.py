"""Losses by name, and losses of the user's own: what takes a task's outputs and targets and gives one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tlresearch.base.errors import ConfigError, one_line
from tlresearch.config.catalogue import LOSSES
from tlresearch.config.parts import make
from tlresearch.config.schema import TaskConfig

NEVER = -100
"""Target that no sample has, where every target counts."""


class CrossEntropy(nn.Module):
    """Mean cross entropy of scores ``(n, classes)`` or, pixel by pixel, ``(n, classes, H, W)``.

    Args:
        weight: Weight of each class.
        ignore_index: Target that does not count; where nothing counts the loss is 0.
    """

    def __init__(self, weight: Tensor | None = None, ignore_index: int = NEVER) -> None:
        super().__init__()
        self.weight = weight  # not a buffer: it belongs to the data, and no checkpoint should bring another one
        self.ignore_index = ignore_index

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss; `targets` are class numbers ``(n,)`` or ``(n, H, W)``."""
        return self._focused(scores, targets, 0.0)

    def _focused(self, scores: Tensor, targets: Tensor, gamma: float) -> Tensor:
        scores, targets = in_rows(scores, targets)
        loss = functional.cross_entropy(scores, targets, ignore_index=self.ignore_index, reduction="none")
        share = (targets != self.ignore_index).float()
        if self.weight is not None:
            weight = self.weight.to(scores.device)
            share = share * weight[targets.clamp(min=0, max=len(weight) - 1)]
        if gamma:
            share, loss = share, loss * (1 - (-loss).exp()) ** gamma
        return (loss * share).sum() / share.sum().clamp(min=1e-8)


class Focal(CrossEntropy):
    """Mean focal loss (Lin et al. 2017): cross entropy times ``(1 - p)**gamma`` of the right class's probability.

    Args:
        gamma: The exponent.
        weight: See `CrossEntropy`.
        ignore_index: See `CrossEntropy`.
    """

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None, ignore_index: int = NEVER) -> None:
        super().__init__(weight, ignore_index)
        self.gamma = gamma

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss."""
        return self._focused(scores, targets, self.gamma)


class Dice(nn.Module):
    """Mean over the classes of ``1 - 2 |P T| / (|P| + |T|)`` with probabilities P (Milletari et al. 2016).

    It is taken over all pixels of the batch, so that a class which an image lacks does not count as wrong there.

    Args:
        ignore_index: Target that does not count.
        smooth: Added to both counts.
    """

    def __init__(self, ignore_index: int = NEVER, smooth: float = 1.0) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.smooth = smooth

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss."""
        scores, targets = in_rows(scores, targets)
        counted = (targets != self.ignore_index)[:, None].float()
        probabilities = scores.softmax(dim=1) * counted
        classes = scores.shape[1]
        truth = functional.one_hot(targets.clamp(min=0, max=classes - 1), classes) * counted
        overlap = (probabilities * truth).sum(dim=0)
        total = probabilities.sum(dim=0) + truth.sum(dim=0)
        return (1 - (2 * overlap + self.smooth) / (total + self.smooth)).mean()


class Combined(nn.Module):
    """Cross entropy plus Dice, the usual loss for unbalanced masks.

    Args:
        weight: See `CrossEntropy`.
        ignore_index: Target that does not count.
    """

    def __init__(self, weight: Tensor | None = None, ignore_index: int = NEVER) -> None:
        super().__init__()
        self.parts = nn.ModuleList([CrossEntropy(weight, ignore_index), Dice(ignore_index)])

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Returns the loss."""
        return torch.stack([part(scores, targets) for part in self.parts]).sum()


def in_rows(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores ``(n, classes)`` in float32 with class numbers ``(n,)``, one row per sample or pixel.

    Row by row, because torch's loss over planes has no deterministic version on a GPU.
    """
    if scores.ndim == 4:
        scores = scores.permute(0, 2, 3, 1).reshape(-1, scores.shape[1])
    return scores.float(), targets.reshape(-1).long()


class NamedLoss(nn.Module):
    """A loss that a config names: what it says to the first batch, and what it gives, is checked.

    Args:
        loss: Takes outputs and targets.
        name: Its name.
    """

    def __init__(self, loss: Callable[[Any, Any], Any], name: str) -> None:
        super().__init__()
        self.inner = loss
        self.name = name
        self._tried = False

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        """Returns the loss of a batch.

        Raises:
            ConfigError: If it refuses the first batch, or gives anything but one number.
        """
        outputs = outputs.float() if isinstance(outputs, Tensor) else outputs
        if self._tried:
            value: Tensor = self.inner(outputs, targets)
            return value
        try:
            value = self.inner(outputs, targets)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of whatever code
            given = f"outputs {described(outputs)} and targets {described(targets)}"
            reason = f"{type(error).__name__}: {one_line(error, 300)}"
            raise ConfigError([f"task.loss: {self.name} does not take {given}: {reason}"], self.name) from error
        if not isinstance(value, Tensor) or value.ndim:
            raise ConfigError(
                [f"task.loss: {self.name} must give one number, the mean of a batch, but gave {described(value)}"],
                self.name,
            )
        self._tried = True
        return value


def described(value: Any) -> str:
    """Says of what kind and shape a value is."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def build_loss(config: TaskConfig, *, weights: Tensor | None, ignored: int | None, source: str) -> NamedLoss | None:
    """Builds the loss that a config names; ``None`` where it is the task's own.

    Args:
        config: The `task` section.
        weights: Weight of each class, if they are wanted.
        ignored: Target that does not count.
        source: Name of the experiment, for errors.

    Raises:
        ConfigError: If it cannot be made, or classes are to be weighed and it takes no weights.
    """
    section = config.loss
    if section is None or LOSSES.is_default(section.name):
        return None
    given = {"weight": weights, "pos_weight": weights, "ignore_index": ignored}
    given = {name: value for name, value in given.items() if value is not None}
    taken = LOSSES.taken(section.name, given)
    if weights is not None and not {"weight", "pos_weight"} & set(taken):
        raise ConfigError([f"task.class_weights: {section.name} takes no weights; set it to none"], source)
    return NamedLoss(make(section, "task.loss", **given), section.name)
