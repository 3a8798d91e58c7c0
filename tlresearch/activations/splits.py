"""A split as the training sees it: raw inputs, or what is stored of them at a boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tlresearch.activations.entry import Stored
from tlresearch.data.base import Batch, SampleKey, Split, TwoStepSplit
from tlresearch.data.loading import collate, take_targets
from tlresearch.data.values import Value, stack


class BoundarySplit:
    """A split that yields batches at the boundary chosen last.

    Args:
        split: The split itself.
        views: Number of augmented views of each sample, so that epoch ``e`` shows view ``e % views``; 0 draws a new
            one in every epoch, and so does a split that is not a `TwoStepSplit`.
    """

    def __init__(self, split: Split, views: int = 0) -> None:
        self.split = split
        self.targets = split.targets
        self.names = split.names
        self.deterministic = split.deterministic
        self.lengths = getattr(split, "lengths", None)
        self.views = 1 if split.deterministic else views * isinstance(split, TwoStepSplit)
        self.boundary = 0
        self.inputs: Stored | None = None
        self.activations: tuple[Stored, ...] = ()

    def __len__(self) -> int:
        return len(self.split)

    def raw(self, index: int) -> Any:
        """Returns the sample before preprocessing."""
        return self.split.raw(index)

    def __getitem__(self, key: SampleKey) -> tuple[Any, Any, int]:
        """Returns one raw sample."""
        return self.split[self._view(key)]

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Assembles a whole batch at the boundary at once; its keys are of one epoch."""
        keys = [self._view(key) for key in keys]
        if not self.activations and self.inputs is None:
            together = getattr(self.split, "__getitems__", None)
            return collate(together(keys) if together else [self.split[key] for key in keys])
        indices = [key.index for key in keys]
        if self.activations:
            inputs = _widened(self.activations[keys[0].epoch if len(self.activations) > 1 else 0].batch(indices))
        else:
            assert self.inputs is not None
            values = [self.inputs[index] for index in indices]
            if isinstance(self.split, TwoStepSplit):
                return self.split.finish(values, keys)
            inputs = stack(values)
        return Batch(inputs, self._targets(keys), torch.tensor(indices), self.boundary)

    def _targets(self, keys: Sequence[SampleKey]) -> Any:
        """Targets of a batch; where the augmentation moves them, such as masks, those of the view."""
        moved = getattr(self.split, "targets_at", None)
        return moved(keys) if moved else take_targets(self.targets, [key.index for key in keys])

    def _view(self, key: SampleKey) -> SampleKey:
        return SampleKey(key.index, key.epoch % self.views) if self.views else key


class AheadSplit(BoundarySplit):
    """A split whose batches go through frozen stages at once, with nothing stored.

    Args:
        split: The split itself.
        forward: The frozen stages.
        boundary: Where they end.
    """

    def __init__(self, split: Split, forward: Callable[[Value], Value], boundary: int) -> None:
        super().__init__(split)
        self.forward = forward
        self.boundary = boundary

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Assembles a whole batch at the boundary."""
        batch = super().__getitems__(keys)
        return Batch(_widened(self.forward(batch.inputs)), batch.targets, batch.indices, self.boundary)


def _widened(value: Value) -> Value:
    """Stored bfloat16 as float32, which every layer and loss takes."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    return {name: leaf.float() if leaf.dtype == torch.bfloat16 else leaf for name, leaf in value.items()}
