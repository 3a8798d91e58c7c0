"""Data sets of torch as data: map-style data sets, the data sets of loaders, and those of a LightningDataModule."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tlresearch.base.errors import DataError, first_line
from tlresearch.data.base import Batch, Data, Fingerprint, SampleKey, Split, SplitName, TargetKind
from tlresearch.data.seeding import derive_seed, seeded
from tlresearch.modality.tensors import Tensors
from tlresearch.modality.values import Value

SPLITS: Sequence[SplitName] = ("train", "val", "test")
Transform = Callable[[Any], Any]


class DatasetSplit(Split):
    """A data set of torch as a split.

    Args:
        name: Name of the split, for errors.
        dataset: Gives ``(input, target)`` of each position.
        transform: Applied to each input; ``None`` takes it as it is.
        seed: Seed of what is random in either.

    Raises:
        DataError: If a sample is not a pair of a tensor and a target, or of another shape than the first.
    """

    def __init__(self, name: SplitName, dataset: Any, transform: Transform | None, seed: int) -> None:
        self.name, self.dataset, self.transform, self.seed = name, dataset, transform, seed
        if (
            not isinstance(dataset, Sized)
            or not hasattr(dataset, "__getitem__")
            or isinstance(dataset, IterableDataset)
        ):
            raise DataError(
                f"data: {name} is a {type(dataset).__name__}; a data set needs __len__ and __getitem__ (map style)"
            )
        if not len(dataset):
            raise DataError(f"data: {name} is empty")
        self.names = [f"{name}/{index}" for index in range(len(dataset))]
        first, again = self._sample(0, 0)[0], self._sample(0, 1)[0]
        self.random = not torch.equal(first, again)
        self.shape = tuple(first.shape)
        content = hashlib.sha256()
        targets = []
        for index in range(len(dataset)):
            value, target = self._sample(index, 0)
            if tuple(value.shape) != self.shape:
                raise DataError(
                    f"data: {name}[{index}] has the shape {tuple(value.shape)}, but {name}[0] {self.shape}; "
                    "bring them to one, as by a transform"
                )
            content.update(value.contiguous().numpy().tobytes())
            targets.append(target)
        self.digest = content.hexdigest()
        self.targets = torch.stack(targets)

    @property
    def augment_key(self) -> str:
        """What a random data set depends on."""
        return f"own {self.seed}" if self.random else ""

    def raw(self, index: int) -> Tensor:
        """Returns the sample as the network gets it."""
        return self._sample(index, 0)[0]

    def load(self, index: int) -> Value:
        """Returns the sample, or of a random one its position: `finish` knows the epoch."""
        return torch.tensor(index) if self.random else self._sample(index, 0)[0]

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        """Makes a batch; what is random is drawn by sample and epoch."""
        return super().finish([self._sample(*key)[0] for key in keys] if self.random else values, keys)

    def _sample(self, index: int, epoch: int) -> tuple[Tensor, Tensor]:
        with _drawn(derive_seed("dataset", self.seed, self.name, index, epoch)):
            sample = self.dataset[index]
            if not isinstance(sample, (tuple, list)) or len(sample) != 2:
                raise DataError(
                    f"data: {self.name}[{index}] is a {type(sample).__name__}; it must be a pair (input, target)"
                )
            value, target = sample
            if self.transform is not None:
                try:
                    value = self.transform(value)
                except Exception as error:
                    raise DataError(
                        f"transform: fails for {self.name}[{index}], a {type(sample[0]).__name__}: "
                        f"{type(error).__name__}: {first_line(error)}"
                    ) from error
        value = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        if not isinstance(value, Tensor):
            what = "transform: gives" if self.transform is not None else f"data: the input of {self.name}[{index}] is"
            raise DataError(f"{what} a {type(value).__name__}; it must be a tensor, as torchvision's ToTensor gives")
        try:
            return value, torch.as_tensor(target)
        except (TypeError, ValueError, RuntimeError):
            raise DataError(
                f"data: the target of {self.name}[{index}] is a {type(target).__name__}; "
                "it must be a class number, or numbers"
            ) from None


@contextmanager
def _drawn(seed: int) -> Iterator[None]:
    """Seeds whatever a data set or transform may draw from, and puts it back."""
    state, numbers = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with seeded(seed):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)


def data_of(
    given: Any, transform: Transform | Mapping[str, Transform] | None = None, *, seed: int = 0, name: str = "datasets"
) -> Data:
    """Makes data of what a program has.

    Args:
        given: Data sets for training and validation, and maybe test, in this order or by name; loaders of such, whose
            data sets are taken; or a LightningDataModule.
        transform: Applied to the inputs of every split, or by split.
        seed: Seed of what is random in them.
        name: Short name for tables.

    Raises:
        DataError: If a split is missing, or a sample is none.
    """
    sets = {split: _dataset(dataset) for split, dataset in by_split(given).items()}
    unknown = [split for split in sets if split not in SPLITS]
    missing = [split for split in ("train", "val") if split not in sets]
    if unknown or missing:
        raise DataError(
            f"data: needs train and val, and may have test, but got {', '.join(map(str, sets)) or 'nothing'}; "
            "give (train, val) or {'train': …, 'val': …}"
        )
    transforms = transform if isinstance(transform, Mapping) else dict.fromkeys(sets, transform)
    splits = {
        split: DatasetSplit(split, dataset, cast(Any, transforms.get(split)), seed) for split, dataset in sets.items()
    }
    for split in splits.values():
        if split.random and split.name != "train":
            raise DataError(
                f"data: {split.name} gives other inputs each time; evaluate on fixed ones: give the random transform "
                "to the training set alone, as in transform={'train': …}"
            )
    shapes = {split.shape for split in splits.values()}
    if len(shapes) > 1:
        raise DataError(f"data: inputs have the shapes {' and '.join(map(str, shapes))}; bring them to one")
    kind, classes = _kind(splits, sets["train"])
    digest = hashlib.sha256(repr(classes).encode())
    for split in splits.values():
        digest.update(split.digest.encode() + split.targets.numpy().tobytes())
    return Data(
        name=name,
        splits=cast(Mapping[SplitName, Split], splits),
        classes=classes,
        kind=kind,
        fingerprint=Fingerprint(digest.hexdigest()),
        preprocessing=Tensors(shapes.pop()),
    )


def by_split(given: Any) -> Mapping[SplitName, Any]:
    """The data sets or loaders of each split."""
    if isinstance(given, LightningDataModule):
        return loaders_of(given)
    if isinstance(given, Mapping):
        return given
    if isinstance(given, (tuple, list)):
        return dict(zip(SPLITS, given, strict=False))
    return {"train": given}


def loaders_of(module: LightningDataModule) -> dict[SplitName, Any]:
    """The loaders that a LightningDataModule defines, by split."""
    module.prepare_data()
    loaders: dict[SplitName, Any] = {}
    stages: Mapping[str, Sequence[SplitName]] = {"fit": ("train", "val"), "test": ("test",)}
    for stage, splits in stages.items():
        defined = [split for split in splits if is_overridden(f"{split}_dataloader", module, LightningDataModule)]
        if defined:
            module.setup(stage)
        # Taken before the next stage is set up, which may put other data in their place.
        loaders |= {split: getattr(module, f"{split}_dataloader")() for split in defined}
    return loaders


def _dataset(given: Any) -> Any:
    return given.dataset if isinstance(given, DataLoader) else given


def _kind(splits: Mapping[SplitName, DatasetSplit], dataset: Any) -> tuple[TargetKind, tuple[str, ...]]:
    """What the targets are, and what their classes or columns are called."""
    for split in splits.values():
        if split.targets.is_floating_point():
            split.targets = split.targets.float()
    targets = torch.cat([split.targets for split in splits.values()])
    if not targets.is_floating_point() and targets.ndim == 1:
        low, count = int(targets.min()), int(targets.max()) + 1
        if low < 0:
            raise DataError(f"data: a target is {low}; class numbers begin at 0")
        for split in splits.values():
            split.targets = split.targets.long()
        names = getattr(dataset, "classes", None)
        fits = isinstance(names, (list, tuple)) and len(names) >= count
        classes = tuple(map(str, names)) if fits else tuple(map(str, range(max(count, 2))))  # type: ignore[arg-type]
        return ("binary" if len(classes) == 2 else "multiclass"), classes
    if targets.ndim == 2 and bool(((targets == 0) | (targets == 1)).all()):
        for split in splits.values():
            split.targets = split.targets.float()
        return "multilabel", tuple(map(str, range(targets.shape[1])))
    if targets.is_floating_point() and targets.ndim <= 2:
        for split in splits.values():
            split.targets = split.targets.reshape(len(split.targets), -1)
        return "numbers", tuple(map(str, range(1 if targets.ndim == 1 else targets.shape[1])))
    raise DataError(
        f"data: targets have the shape {tuple(targets.shape[1:])} and are {targets.dtype}; they must be class numbers, "
        "columns of 0 and 1, or numbers"
    )
