"""What every loop has in common, so that a trial of one is the same training as a trial of another."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import Sampler

from tlresearch.data.loading import EpochSampler

SEED = 0
WEIGHT_DECAY = 0.01
"""The default of torch's AdamW, on every parameter."""


class Order(Sampler[int]):
    """The order of samples in each epoch; Lightning calls `set_epoch`."""

    def __init__(self, size: int, batch: int) -> None:
        self._sampler = EpochSampler(size, shuffle=True, seed=SEED, batch_size=batch)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch."""
        self._sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        return (key.index for key in self._sampler)


def new_head(width: int, classes: int) -> nn.Linear:
    """The head's first weights."""
    torch.manual_seed(SEED)
    return nn.Linear(width, classes)
