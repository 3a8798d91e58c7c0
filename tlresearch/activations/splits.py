"""A split as the training sees it: it yields raw inputs, or stored activations at a boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tlresearch.activations.entry import Stored
from tlresearch.data.base import Batch, SampleKey, Split, positions
from tlresearch.modality.values import Value


class BoundarySplit(Split):
    """A split that yields batches at the boundary that `FrozenPrefix` has set.

    Args:
        split: The original split.
        views: Number of augmented views of each sample: epoch ``e`` shows view ``e % views``. 0 draws a new view in
            every epoch.
    """

    def __init__(self, split: Split, views: int = 0) -> None:
        self.split = split
        self.targets = split.targets
        self.names = split.names
        self.views = 1 if split.deterministic else views
        self.boundary = 0
        self.inputs: Stored | None = None
        self.activations: tuple[Stored, ...] = ()

    @property
    def lengths(self) -> Sequence[int] | None:
        """Length of each sample."""
        return self.split.lengths

    @property
    def load_key(self) -> str:
        """Key of what `load` depends on."""
        return self.split.load_key

    @property
    def augment_key(self) -> str:
        """Key of what a random `finish` depends on."""
        return self.split.augment_key

    @property
    def parts(self) -> Split:
        """What is stored: the samples, or what they are made of."""
        return self.split.parts

    def rows_of(self, index: int) -> Sequence[int]:
        """Positions in `parts` of what a sample is made of."""
        return self.split.rows_of(index)

    def raw(self, index: int) -> Any:
        """Returns the sample before preprocessing."""
        return self.split.raw(index)

    def load(self, index: int) -> Value:
        """Returns a sample in front of anything random, from the store if it is there."""
        return self.split.load(index) if self.inputs is None else self.inputs[index]

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        """Makes a batch of raw inputs."""
        return self.split.finish(values, keys)

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Assembles a whole batch at the boundary; all its keys have the same epoch."""
        keys = [self._view(key) for key in keys]
        if self.activations:
            stored = self.activations[keys[0].epoch if len(self.activations) > 1 else 0]
            inputs = _widened(stored.batch([row for key in keys for row in self.rows_of(key.index)]))
            return Batch(inputs, self.split.targets_at(keys), positions(keys), self.boundary)
        if self.inputs is not None:
            return self.split.finish([self.inputs[row] for key in keys for row in self.rows_of(key.index)], keys)
        return self.split.__getitems__(keys)

    def _view(self, key: SampleKey) -> SampleKey:
        return SampleKey(key.index, key.epoch % self.views) if self.views else key


class AheadSplit(BoundarySplit):
    """A split whose batches go through frozen stages when they are loaded; nothing is stored.

    Args:
        split: The original split.
        forward: The frozen stages.
        boundary: The boundary at which they end.
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
    """Converts stored bfloat16 to float32, which every layer and loss accepts."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    return {name: leaf.float() if leaf.dtype == torch.bfloat16 else leaf for name, leaf in value.items()}
