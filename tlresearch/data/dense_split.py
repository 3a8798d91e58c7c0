"""A split of images whose targets lie in the image plane, masks or boxes: both are framed and augmented together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from tlresearch.base.errors import DataError
from tlresearch.data.base import Batch, SampleKey
from tlresearch.data.loading import stack_targets
from tlresearch.data.mask_files import Pairs
from tlresearch.data.seeding import seeded
from tlresearch.data.table import Images
from tlresearch.data.values import Value
from tlresearch.modality.image import Evaluation, Preprocessing, framed_boxes, framed_mask

Size = tuple[int, int]
"""Height and width in pixels."""

_SMALLEST = 0.01  # a box that a random crop leaves with a shorter side than this share of the input's is dropped
_KEPT_BYTES = 256_000_000


class PlaneTargets(Protocol):
    """Targets in the image plane, by row of the table."""

    def whole(self, row: int) -> Tensor:
        """Returns a target at the size of its image."""
        ...

    def framed(self, target: Tensor, wanted: Preprocessing, size: Size) -> Tensor:
        """Brings a target of an image of this size to the input size."""
        ...

    def wrap(self, target: Tensor, size: Size) -> Any:
        """Returns what torchvision's transforms move with the image."""
        ...

    def unwrap(self, moved: Any, target: Tensor) -> Tensor:
        """Makes a target of what was moved, given the target it was made from."""
        ...


class MaskTargets:
    """Masks of class numbers, uint8 ``(H, W)``.

    Args:
        pairs: Images with their masks.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def whole(self, row: int) -> Tensor:
        """Returns a mask; see `Pairs.mask`."""
        return self._pairs.mask(row)

    def framed(self, target: Tensor, wanted: Preprocessing, size: Size) -> Tensor:
        """Brings a mask to the input size, without mixing neighbours."""
        return framed_mask(target, wanted)

    def wrap(self, target: Tensor, size: Size) -> Any:
        """Returns a mask, which torchvision samples by nearest neighbour."""
        return tv_tensors.Mask(target)

    def unwrap(self, moved: Any, target: Tensor) -> Tensor:
        """Returns the plain tensor."""
        return cast(Tensor, moved.as_subclass(Tensor))


class BoxTargets:
    """Boxes with their class, float32 ``(n, 5)``: x0, y0, x1, y1 in pixels, class number.

    Args:
        boxes: Boxes of every image of the table.
    """

    def __init__(self, boxes: Sequence[Tensor]) -> None:
        self._boxes = boxes

    def whole(self, row: int) -> Tensor:
        """Returns the boxes of an image."""
        return self._boxes[row]

    def framed(self, target: Tensor, wanted: Preprocessing, size: Size) -> Tensor:
        """Scales boxes with their image."""
        return framed_boxes(target, wanted, *size)

    def wrap(self, target: Tensor, size: Size) -> Any:
        """Returns bounding boxes, which torchvision clips to the image."""
        return tv_tensors.BoundingBoxes(target[:, :4], format="XYXY", canvas_size=size)

    def unwrap(self, moved: Any, target: Tensor) -> Tensor:
        """Adds the classes, and drops what is left of boxes that lay outside of a crop."""
        boxes = moved.as_subclass(Tensor)
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = (sides >= _SMALLEST * max(moved.canvas_size)).all(dim=1)
        return torch.cat([boxes, target[:, 4:]], dim=1)[kept]


@dataclass(frozen=True)
class JointAugmentation:
    """A random transform of image and target together; it draws from torch's global generator.

    Attributes:
        name: The value of ``data.augment``.
        transform: Takes and gives image and target.
        framed: Whether it takes framed images; else whole decoded ones.
    """

    name: str
    transform: v2.Transform
    framed: bool


def build_joint(name: str, evaluation: Evaluation, side: int) -> JointAugmentation | None:
    """Builds the random transform of image and target; ``None`` for `none`.

    Args:
        name: none, flip (mirrored half of the time) or crop_flip (a random part of at least a quarter, resized).
        evaluation: Gives the interpolation.
        side: Side of the input in pixels.

    Raises:
        DataError: If it is one that would move the image without its target.
    """
    if name == "none":
        return None
    if name == "flip":
        return JointAugmentation(name, v2.RandomHorizontalFlip(), framed=True)
    if name != "crop_flip":
        raise DataError(f"data.augment: {name} moves images without their masks or boxes; use none, flip or crop_flip")
    mode, antialias = evaluation.interpolation, evaluation.preprocessing.antialias
    crop = v2.RandomResizedCrop((side, side), scale=(0.25, 1.0), interpolation=mode, antialias=antialias)
    return JointAugmentation(name, v2.Compose([crop, v2.RandomHorizontalFlip()]), framed=False)


class DenseSplit:
    """Samples of one split.

    Args:
        images: The images of the whole table.
        targets: Their targets.
        rows: Positions of this split's samples in them.
        names: Names of this split's samples.
        sizes: Sizes of this split's images.
        evaluation: Deterministic preprocessing.
        augmentation: Random transform of the training samples.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        images: Images,
        targets: PlaneTargets,
        rows: Sequence[int],
        *,
        names: Sequence[str],
        sizes: Sequence[Size],
        evaluation: Evaluation,
        augmentation: JointAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.names = names
        self._images = images
        self._plane = targets
        self._rows = rows
        self._sizes = sizes
        self._evaluation = evaluation
        self._augmentation = augmentation
        self._seed = seed
        self.targets: Tensor | Sequence[Any] = _FramedTargets(self)

    @property
    def deterministic(self) -> bool:
        """Whether a sample is the same in every epoch."""
        return self._augmentation is None

    @property
    def load_key(self) -> str:
        """What `load` depends on beside the data set's content."""
        wanted = self._evaluation.preprocessing
        return f"dense, {wanted}" if self._framed else f"dense, decoded, {wanted.channels} channels"

    @property
    def augment_key(self) -> str:
        """What `finish` draws its random numbers from; empty if it draws none."""
        return f"joint {self._augmentation.name}, seed {self._seed}" if self._augmentation else ""

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

    def framed_target(self, index: int) -> Tensor:
        """Returns a target at the input size, without augmentation."""
        target = self._whole(index)
        return self._plane.framed(target, self._evaluation.preprocessing, self._sizes[index])

    def load(self, index: int) -> Value:
        """Returns image and target, framed unless a random crop follows."""
        if not self._framed:
            return {"image": self.raw(index), "target": self._whole(index)}
        return {"image": self._evaluation.frame(self.raw(index)), "target": self.framed_target(index)}

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        """Augments images with their targets, and normalises the images."""
        pairs = [self._augment(cast(dict[str, Tensor], value), key) for value, key in zip(values, keys, strict=True)]
        images, targets = zip(*pairs, strict=True)
        inputs = self._evaluation.normalise(torch.stack(images))
        indices = torch.tensor([key.index for key in keys], dtype=torch.int64)
        return Batch(inputs, stack_targets(targets), indices)

    def targets_at(self, keys: Sequence[SampleKey]) -> Any:
        """Returns the targets of a batch as the augmentation moves them."""
        if self._augmentation is None:
            return stack_targets([self.targets[key.index] for key in keys])
        return self.finish([self.load(key.index) for key in keys], keys).targets

    def __getitem__(self, key: SampleKey) -> tuple[Value, Tensor, int]:
        """Returns network input, target and index of one sample."""
        batch = self.finish([self.load(key.index)], [key])
        return cast(Tensor, batch.inputs)[0], batch.targets[0], key.index

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """Assembles a whole batch at once."""
        return self.finish([self.load(key.index) for key in keys], keys)

    @property
    def _framed(self) -> bool:
        return self._augmentation is None or self._augmentation.framed

    def _whole(self, index: int) -> Tensor:
        try:
            return self._plane.whole(self._rows[index])
        except ValueError as error:
            raise DataError(f"{self.names[index]} cannot be read any more: {error}; restore the file") from None

    def _augment(self, value: dict[str, Tensor], key: SampleKey) -> tuple[Tensor, Tensor]:
        image, target = value["image"], value["target"]
        if self._augmentation is None:
            return image, target
        size = (image.shape[-2], image.shape[-1])
        # Seeded by the key alone: neither order nor process nor resume can change a sample.
        with seeded("augment", self._seed, key.epoch, key.index):
            moved, joined = self._augmentation.transform(tv_tensors.Image(image), self._plane.wrap(target, size))
        return moved.as_subclass(Tensor), self._plane.unwrap(joined, target)


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
