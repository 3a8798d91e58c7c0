"""Splits of images: decoded, augmented by their keys and normalised, with targets beside the image or in its plane."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torchvision import tv_tensors

from tlresearch.base.errors import DataError
from tlresearch.config.schema import DataConfig
from tlresearch.data.arrays import ArrayImages
from tlresearch.data.base import Batch, SampleKey, Split, SplitName, positions, stack_targets
from tlresearch.data.checks import check_sizes
from tlresearch.data.own_transforms import OwnTransforms, build_own
from tlresearch.data.prepared import Prepared
from tlresearch.data.seeding import seeded
from tlresearch.data.table import Images, PlaneTargets, Size, Table
from tlresearch.data.transforms import Augmentation, build_augmentation, build_joint
from tlresearch.modality.image import Evaluation, Preprocessing
from tlresearch.modality.values import Value

_KEPT_BYTES = 256_000_000


class TableSplit(Split):
    """Samples of some rows of a table, read from where the table says.

    Args:
        images: The images, or sounds, of the whole table.
        rows: Positions of this split's samples in them.
        targets: Targets of this split.
        names: Names of this split's samples.
        channels: Channels that a sample is read with.
    """

    def __init__(
        self,
        images: Images,
        rows: Sequence[int],
        *,
        targets: Tensor | Sequence[Any],
        names: Sequence[str],
        channels: int = 1,
    ) -> None:
        self.targets = targets
        self.names = names
        self._images = images
        self._rows = rows
        self._channels = channels

    def raw(self, index: int) -> Tensor:
        """Returns a sample before preprocessing: images uint8 ``(C, H, W)`` with the network's channels.

        Raises:
            DataError: If the file has become unreadable since it was checked.
        """
        try:
            return self._images.load(self._rows[index], self._channels)
        except ValueError as error:
            raise self._lost(index, error) from None

    def _lost(self, index: int, error: ValueError) -> DataError:
        return DataError(f"{self.names[index]} cannot be read any more: {error}; restore the file")


class ImageSplit(TableSplit):
    """Images with labels.

    Args:
        images: See `TableSplit`.
        rows: See `TableSplit`.
        targets: Targets of this split.
        names: Names of this split's samples.
        evaluation: Deterministic preprocessing.
        augmentation: Random transform of the training images; ``None`` uses the evaluation's frame.
        seed: Seed of the augmentation.
        prepare: Transform of every image in front of the evaluation's frame, the same in every epoch.
    """

    def __init__(
        self,
        images: Images,
        rows: Sequence[int],
        *,
        targets: Tensor | Sequence[Any],
        names: Sequence[str],
        evaluation: Evaluation,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        prepare: Augmentation | None = None,
    ) -> None:
        super().__init__(images, rows, targets=targets, names=names, channels=evaluation.preprocessing.channels)
        self._evaluation = evaluation
        self._augmentation = augmentation
        self._seed = seed
        self._prepare = prepare

    @property
    def load_key(self) -> str:
        """What `load` depends on; empty where loading is no work that is worth keeping."""
        wanted = self._evaluation.preprocessing
        if not self._framed:
            return f"decoded, {wanted.channels} channels"
        prepared = f"prepared {self._prepare.name}, " if self._prepare else ""
        if isinstance(self._images, ArrayImages) and wanted.resize is None and not prepared:
            return ""
        return prepared + (
            f"{wanted.channels} channels, resize {wanted.resize}, crop {wanted.crop}, "
            f"{wanted.interpolation}, antialias {wanted.antialias}"
        )

    @property
    def augment_key(self) -> str:
        """What `finish` draws its random numbers from; empty if it draws none."""
        return f"{self._augmentation.name}, seed {self._seed}" if self._augmentation else ""

    def load(self, index: int) -> Value:
        """Returns a decoded image, uint8 ``(C, H, W)``: framed, unless a random crop follows."""
        image = self.raw(index)
        if self._prepare is not None:
            with seeded("prepare", index):
                image = self._prepare(image)
        return self._evaluation.frame(image) if self._framed else image

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        """Augments and normalises images, and adds their targets."""
        images = cast(Sequence[Tensor], values)
        if self._augmentation is not None:
            moved = (cast(Tensor, self._moved(key, image)) for image, key in zip(images, keys, strict=True))
            images = [image if self._fits(image) else self._evaluation.frame(image) for image in moved]
        inputs = self._evaluation.normalise(torch.stack(_alike(images)))
        return Batch(inputs, self.targets_at(keys), positions(keys))

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Assembles a whole batch at once; images in memory are taken together."""
        if not isinstance(self._images, ArrayImages) or self._prepare is not None:
            return super().__getitems__(keys)
        images = self._images.load_batch([self._rows[key.index] for key in keys], self._channels)
        return self.finish(list(self._evaluation.frame(images) if self._framed else images), keys)

    @property
    def _framed(self) -> bool:
        return self._augmentation is None or self._augmentation.framed

    @property
    def has_own(self) -> bool:
        """Whether transforms of the user's have a part in it."""
        used = (self._augmentation, self._prepare)
        return any(each is not None and isinstance(each.transform, OwnTransforms) for each in used)

    def _fits(self, image: Tensor) -> bool:
        """Whether an image has the input size; transforms of the user's may give any other."""
        side = self._evaluation.preprocessing.crop
        return side is None or image.shape[-2:] == (side, side)

    def _moved(self, key: SampleKey, *parts: Any) -> Any:
        """Augments an image, with what moves along, by the key alone: neither order nor process changes it."""
        assert self._augmentation is not None
        with seeded("augment", self._seed, key.epoch, key.index):
            return self._augmentation(*parts)


class DenseSplit(ImageSplit):
    """Images with targets in their plane, masks or boxes: both are framed and augmented together.

    Args:
        images: See `TableSplit`.
        plane: Targets of the whole table.
        rows: See `TableSplit`.
        names: See `TableSplit`.
        sizes: Sizes of this split's images.
        evaluation: See `ImageSplit`.
        augmentation: See `ImageSplit`; it moves image and target.
        seed: See `ImageSplit`.
    """

    def __init__(
        self,
        images: Images,
        plane: PlaneTargets,
        rows: Sequence[int],
        *,
        names: Sequence[str],
        sizes: Sequence[Size],
        evaluation: Evaluation,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            images,
            rows,
            targets=_FramedTargets(self),
            names=names,
            evaluation=evaluation,
            augmentation=augmentation,
            seed=seed,
        )
        self._plane = plane
        self._sizes = sizes

    @property
    def load_key(self) -> str:
        """What `load` depends on beside the data set's content."""
        wanted = self._evaluation.preprocessing
        return f"dense, {wanted}" if self._framed else f"dense, decoded, {wanted.channels} channels"

    @property
    def augment_key(self) -> str:
        """What `finish` draws its random numbers from; empty if it draws none."""
        return f"joint {super().augment_key}" if self._augmentation else ""

    def framed_target(self, index: int) -> Tensor:
        """Returns a target at the input size, without augmentation."""
        return self._plane.framed(self._whole(index), self._evaluation.preprocessing, self._sizes[index])

    def load(self, index: int) -> Value:
        """Returns image and target, framed unless a random crop follows."""
        target = self.framed_target(index) if self._framed else self._whole(index)
        return {"image": cast(Tensor, super().load(index)), "target": target}

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        """Augments images with their targets, and normalises the images."""
        pairs = [self._pair(cast(dict[str, Tensor], value), key) for value, key in zip(values, keys, strict=True)]
        images, targets = zip(*pairs, strict=True)
        return Batch(self._evaluation.normalise(torch.stack(images)), stack_targets(targets), positions(keys))

    def targets_at(self, keys: Sequence[SampleKey]) -> Any:
        """Returns the targets of a batch as the augmentation moves them."""
        if self._augmentation is None:
            return super().targets_at(keys)
        return self.finish([self.load(key.index) for key in keys], keys).targets

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Assembles a whole batch, image by image with its target."""
        return TableSplit.__getitems__(self, keys)

    def _whole(self, index: int) -> Tensor:
        try:
            return self._plane.whole(self._rows[index])
        except ValueError as error:
            raise self._lost(index, error) from None

    def _pair(self, value: dict[str, Tensor], key: SampleKey) -> tuple[Tensor, Tensor]:
        image, target = value["image"], value["target"]
        if self._augmentation is None:
            return image, target
        size = (image.shape[-2], image.shape[-1])
        moved, joined = self._moved(key, tv_tensors.Image(image), self._plane.wrap(target, size))
        image, target = moved.as_subclass(Tensor), self._plane.unwrap(joined, target)
        if not self._fits(image):
            size = (image.shape[-2], image.shape[-1])
            target = self._plane.framed(target, self._evaluation.preprocessing, size)
            image = self._evaluation.frame(image)
        return image, target


class _FramedTargets(Sequence[Tensor]):
    """Targets of a split at the input size, made when they are asked for; small ones are kept."""

    def __init__(self, split: DenseSplit) -> None:
        self._split = split
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index not in self._kept:
            target = self._split.framed_target(index)
            if self._bytes + target.nbytes > _KEPT_BYTES:
                return target
            self._kept[index] = target
            self._bytes += target.nbytes
        return self._kept[index]


def image_splits(
    table: Table, prepared: Prepared, config: DataConfig, preprocessing: Preprocessing, seed: int
) -> tuple[Preprocessing, Mapping[SplitName, Split]]:
    """Makes the splits of a table of images.

    Args:
        table: The table.
        prepared: Its samples, checked and distributed.
        config: The `data` section.
        preprocessing: What is done to each image.
        seed: Seed of the augmentation.

    Returns:
        The preprocessing with the fit of the table and the size that images in a plane have, and the splits.
    """
    if table.plane is not None:
        return _dense_splits(table, table.plane, prepared, config, preprocessing, seed)
    preprocessing = replace(preprocessing, fit=table.fit)
    evaluation = Evaluation(preprocessing)
    size = check_sizes(table.names, prepared.checked, preprocessing)
    own = build_own(config.transforms, "data.transforms")
    augmentation = own or build_augmentation(config.augment, evaluation, size=size)
    prepare = build_own(config.eval_transforms, "data.eval_transforms")
    return preprocessing, _tried(
        {
            split: ImageSplit(
                table.images,
                rows,
                targets=torch.as_tensor(prepared.targets_of(split)),
                names=[table.names[row] for row in rows],
                evaluation=evaluation,
                augmentation=augmentation if split == "train" else None,
                seed=seed,
                prepare=prepare if split != "train" else None,
            )
            for split, rows in prepared.splits.items()
        }
    )


def _tried(splits: Mapping[SplitName, ImageSplit]) -> Mapping[SplitName, Split]:
    """The splits, after transforms of the user's have been tried on a few images of each."""
    for split in splits.values():
        if split.has_own:
            split.__getitems__([SampleKey(index, 0) for index in range(min(2, len(split)))])
    return splits


def _dense_splits(
    table: Table,
    plane: Callable[[Mapping[int, Size]], PlaneTargets],
    prepared: Prepared,
    config: DataConfig,
    preprocessing: Preprocessing,
    seed: int,
) -> tuple[Preprocessing, Mapping[SplitName, Split]]:
    sizes = {row: (checked.height, checked.width) for row, checked in prepared.checked.items()}
    if preprocessing.crop is None:
        side = _one_side(sizes.values())
        preprocessing = replace(preprocessing, crop=side, resize=side)
    preprocessing = replace(preprocessing, fit=table.fit)
    assert preprocessing.crop is not None
    _check_channels(table, next(iter(sizes)), preprocessing.channels)
    evaluation, targets = Evaluation(preprocessing), plane(sizes)
    if config.eval_transforms:
        raise DataError("data.eval_transforms: is for images with labels, and would move images without their targets")
    own = build_own(config.transforms, "data.transforms")
    augmentation = own or build_joint(config.augment, evaluation, preprocessing.crop)
    return preprocessing, _tried(
        {
            split: DenseSplit(
                table.images,
                targets,
                rows,
                names=[table.names[row] for row in rows],
                sizes=[sizes[row] for row in rows],
                evaluation=evaluation,
                augmentation=augmentation if split == "train" else None,
                seed=seed,
            )
            for split, rows in prepared.splits.items()
        }
    )


def _check_channels(table: Table, row: int, channels: int) -> None:
    """Refuses images that cannot be brought to the network's channels."""
    try:
        table.images.load(row, channels)
    except ValueError as error:
        raise DataError(f"{table.names[row]}: {error}") from None


def _alike(images: Sequence[Tensor]) -> list[Tensor]:
    """Images of one size; those of a network that takes any size may have got several by transforms."""
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise DataError(f"data.transforms: images of a batch differ in size ({sorted(sizes)}); set data.image_size")
    return list(images)


def _one_side(sizes: Iterable[Size]) -> int:
    """Returns the side of images that are all squares of one size."""
    different = sorted(set(sizes))
    if len(different) > 1 or different[0][0] != different[0][1]:
        shown = ", ".join(f"{width}x{height}" for height, width in different[:3])
        raise DataError(f"images are taken as they are but are no squares of one size ({shown}); set data.image_size")
    return different[0][0]
