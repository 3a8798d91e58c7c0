"""A split of images: decoded, augmented by its key and normalised."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tlresearch.data.arrays import ArrayImages
from tlresearch.data.base import Batch, SampleKey
from tlresearch.data.loading import collate
from tlresearch.data.seeding import seeded
from tlresearch.data.table import Images
from tlresearch.data.transforms import Augmentation, Evaluation
from tlresearch.errors import DataError


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

    def __getitem__(self, key: SampleKey) -> tuple[Tensor, Tensor, int]:
        """Returns network input, target and index of one sample."""
        index, epoch = key
        image = self.raw(index)
        if self._augmentation is None:
            return self._evaluation(image), self.targets[index], index
        # Seeded by the key alone: neither order nor process nor resume can change a sample.
        with seeded("augment", self._seed, epoch, index):
            image = self._augmentation(image)
        return self._evaluation.normalise(image), self.targets[index], index

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Assembles a whole batch, at once where images in memory are only preprocessed."""
        if self._augmentation is None and isinstance(self._images, ArrayImages):
            indices = [key.index for key in keys]
            channels = self._evaluation.preprocessing.channels
            images = self._images.load_batch([self._rows[index] for index in indices], channels)
            return collate(
                [(image, self.targets[i], i) for image, i in zip(self._evaluation(images), indices, strict=True)]
            )
        return collate([self[key] for key in keys])
