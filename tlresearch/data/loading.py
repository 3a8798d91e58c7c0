"""The order of samples and the loader of batches, both pure functions of seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Sampler

from tlresearch.base.errors import DataError
from tlresearch.data.base import SampleKey, Split
from tlresearch.data.sampling import balanced_order, classes_of
from tlresearch.data.seeding import derive_seed

POOL = 50
"""Batches whose samples are sorted by length together."""


class EpochSampler(Sampler[SampleKey]):
    """Yields the keys of one epoch, this process's share of them where training is distributed.

    With `shuffle` (training) the order is a permutation drawn from seed and epoch, and all processes get
    equally many samples: the first ones are repeated to fill up. Without (evaluation), samples keep their
    order and none is repeated, so that shares may differ by one.

    A training share that would leave a last batch of one sample loses that sample: batch norm cannot train
    on a single value. Dropping the whole remainder instead could cost most of a small data set; and as the
    order changes, it is another sample in every epoch.

    With `lengths`, batches of training hold samples of about one length, so that little of them is padding: the
    permutation is cut into pools of `POOL` batches, a pool is sorted by length, and its batches are shuffled.

    Args:
        size: Number of samples in the split.
        shuffle: Whether this is training.
        seed: Seed of the order.
        batch_size: Size of the batches the keys are cut into.
        lengths: Length of each sample, in whatever unit; ``None`` where all are of one.
        classes: Class number of each sample, ``(samples,)``, to draw every class equally often instead of every
            sample once; see `balanced_order`.
    """

    def __init__(
        self,
        size: int,
        *,
        shuffle: bool,
        seed: int,
        batch_size: int,
        lengths: Sequence[int] | None = None,
        classes: Tensor | None = None,
    ) -> None:
        self.size = size
        self.shuffle = shuffle
        self.seed = seed
        self.batch_size = batch_size
        self.lengths = lengths
        self.classes = classes
        self.epoch = 0
        self._skipped = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration; Lightning calls it."""
        self.epoch = epoch

    def skip(self, samples: int, *, epoch: int) -> None:
        """Leaves out the first samples of this process's share in one epoch: those consumed before a resume.

        The length stays that of the whole epoch, which is what Lightning counts its batches against.
        """
        if samples < 0:
            raise ValueError(f"samples to skip cannot be negative but got {samples}.")
        self._skipped = (epoch, samples)

    def __len__(self) -> int:
        rank, world = _place()
        if not self.shuffle:
            return len(range(rank, self.size, world))
        share = -(-self.size // world)
        return share - 1 if share > 1 and self.batch_size > 1 and share % self.batch_size == 1 else share

    def __iter__(self) -> Iterator[SampleKey]:
        epoch = self.epoch
        share = self._share(epoch)
        if self._skipped[0] == epoch:
            share = share[self._skipped[1] :]
        return (SampleKey(index, epoch) for index in share)

    def _share(self, epoch: int) -> list[int]:
        rank, world = _place()
        if not self.shuffle:
            return list(range(rank, self.size, world))
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        if self.classes is None:
            order = torch.randperm(self.size, generator=generator).tolist()
        else:
            order = balanced_order(self.classes, generator)
        # Repeated as often as needed: there may be more processes than samples.
        filled = [order[position % self.size] for position in range(-(-self.size // world) * world)]
        share = filled[rank::world][: len(self)]
        return share if self.lengths is None else _bucketed(share, self.lengths, self.batch_size, generator)


def _bucketed(order: list[int], lengths: Sequence[int], size: int, generator: torch.Generator) -> list[int]:
    """Reorders samples within pools so that the batches they are cut into are of about one length each."""
    batches = []
    for start in range(0, len(order), POOL * size):
        pool = sorted(order[start : start + POOL * size], key=lambda index: lengths[index])
        batches += [pool[first : first + size] for first in range(0, len(pool), size)]
    # A smaller batch stays the last one, or those behind it would be cut elsewhere.
    last = [] if len(batches[-1]) == size else batches.pop()
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [index for number in shuffled for index in batches[number]] + last


def _place() -> tuple[int, int]:
    """Rank and number of processes, asked late: loaders are built before the processes are connected."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def whole(batch: Any) -> Any:
    """Returns a batch as its split has assembled it; named, so that loader processes can be handed it."""
    return batch


def make_loader(
    split: Split,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    workers: int = 0,
    drop_last: bool = False,
    sampling: Literal["uniform", "balanced"] = "uniform",
) -> DataLoader[Any]:
    """Builds the loader of a split; it yields a `Batch` and draws no global random number.

    Args:
        split: Samples.
        batch_size: Samples per batch.
        shuffle: True for training, false for evaluation; see `EpochSampler`.
        seed: Seed of the order.
        workers: Loader processes; they stay alive between epochs.
        drop_last: Whether to drop a smaller last batch altogether.
        sampling: Whether training draws every sample once, or every class equally often.

    Raises:
        DataError: If `drop_last` would leave no batch, or samples to be balanced have no single class.
    """
    classes = classes_of(split) if shuffle and sampling == "balanced" else None
    sampler = EpochSampler(
        len(split), shuffle=shuffle, seed=seed, batch_size=batch_size, lengths=split.lengths, classes=classes
    )
    if drop_last and len(sampler) < batch_size:
        raise DataError(
            f"{len(split)} samples do not fill one batch of {batch_size} and the last one is dropped: "
            "lower data.batch_size"
        )
    return DataLoader(
        split,  # type: ignore[arg-type]  # a split is asked by SampleKey, which torch's Dataset leaves open
        batch_size=batch_size,
        sampler=sampler,
        drop_last=drop_last,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=whole,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(derive_seed("loader", seed)),
    )
