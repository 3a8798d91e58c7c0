"""A split of images: decoded, augmented by its key and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from tlresearch.base.errors import DataError
from tlresearch.data.arrays import ArrayImages
from tlresearch.data.base import Batch, SampleKey
from tlresearch.data.seeding import seeded
from tlresearch.data.table import Images
from tlresearch.data.transforms import Augmentation
from tlresearch.data.values import Value
from tlresearch.modality.image import Evaluation


class ImageSplit:
    """Samples of one split.

    Args:
        images: The images of the whole table.
        rows: Positions of this split's images in them.
        targets: Targets of this split.
        names: Names of this split's samples.
        evaluation: Deterministic preprocessing.
        augmentation: Random transform of the training images; ``None`` uses the evaluation's frame.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        images: Images,
        rows: Sequence[int],
        *,
        targets: Tensor,
        names: Sequence[str],
        evaluation: Evaluation,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.targets = targets
        self.names = names
        self._images = images
        self._rows = rows
        self._evaluation = evaluation
        self._augmentation = augmentation
        self._seed = seed

    @property
    def deterministic(self) -> bool:
        """Whether a sample is the same in every epoch."""
        return self._augmentation is None

    def __len__(self) -> int:
        return len(self._rows)

    def raw(self, index: int) -> Tensor:
        """Returns an image before preprocessing, uint8 ``(C, H, W)`` with the network's channels.

        Raises:
            DataError: If the file has become unreadable since it was checked.
        """
        try:
            return self._images.load(self._rows[index], self._evaluation.preprocessing.channels)
        except ValueError as error:
            raise DataError(f"{self.names[index]} cannot be read any more: {error}; restore the file") from None

    @property
    def load_key(self) -> str:
        """What `load` depends on; empty where loading is no work that is worth keeping."""
        wanted = self._evaluation.preprocessing
        if not self._framed:
            return f"decoded, {wanted.channels} channels"
        if isinstance(self._images, ArrayImages) and wanted.resize is None:
            return ""
        return (
            f"{wanted.channels} channels, resize {wanted.resize}, crop {wanted.crop}, "
            f"{wanted.interpolation}, antialias {wanted.antialias}"
        )

    @property
    def augment_key(self) -> str:
        """What `finish` draws its random numbers from; empty if it draws none."""
        return f"{self._augmentation.name}, seed {self._seed}" if self._augmentation else ""

    def load(self, index: int) -> Tensor:
        """Returns a decoded image, uint8 ``(C, H, W)``: framed, unless a random crop follows."""
        image = self.raw(index)
        return self._evaluation.frame(image) if self._framed else image

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        """Augments and normalises images, and adds their targets."""
        images = cast(Sequence[Tensor], values)
        if self._augmentation is not None:
            images = [self._augment(image, key) for image, key in zip(images, keys, strict=True)]
        indices = [key.index for key in keys]
        inputs = self._evaluation.normalise(torch.stack(list(images)))
        return Batch(inputs, self.targets[indices], torch.tensor(indices, dtype=torch.int64))

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor, int]:
        """Returns network input, target and index of one sample."""
        batch = self.finish([self.load(key.index)], [key])
        return cast(Tensor, batch.inputs)[0], self.targets[key.index], key.index

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Assembles a whole batch at once."""
        return self.finish(self._load_all([key.index for key in keys]), keys)

    @property
    def _framed(self) -> bool:
        return self._augmentation is None or self._augmentation.framed

    def _load_all(self, indices: Sequence[int]) -> Sequence[Tensor]:
        if isinstance(self._images, ArrayImages):
            channels = self._evaluation.preprocessing.channels
            images = self._images.load_batch([self._rows[index] for index in indices], channels)
            return list(self._evaluation.frame(images) if self._framed else images)
        return [self.load(index) for index in indices]

    def _augment(self, image: Tensor, key: SampleKey) -> Tensor:
        assert self._augmentation is not None
        # Seeded by the key alone: neither order nor process nor resume can change a sample.
        with seeded("augment", self._seed, key.epoch, key.index):
            return self._augmentation(image)
