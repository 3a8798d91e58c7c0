"""Random augmentation of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms import v2

from tlresearch.base.errors import DataError, nearest
from tlresearch.modality.image import Evaluation


@dataclass(frozen=True)
class Augmentation:
    """A random transform of uint8 images; it draws from torch's global generator.

    Attributes:
        name: The value of ``data.augment``.
        transform: From a framed or a decoded image to one of input size.
        framed: Whether it takes framed images, which are of one size; else whole decoded ones.
    """

    name: str
    transform: Callable[[Tensor], Tensor]
    framed: bool

    def __call__(self, image: Tensor) -> Tensor:
        """Augments one image."""
        return self.transform(image)


def build_augmentation(
    name: str, evaluation: Evaluation, *, size: tuple[int, int] | None = None
) -> Augmentation | None:
    """Builds the random transform to a uint8 image of input size; ``None`` for `none`.

    Args:
        name: none, flip (the frame of evaluation, mirrored half of the time), crop_flip (a random part of
            the image, resized), randaugment (crop_flip, then RandAugment), or trivial (crop_flip, then
            TrivialAugmentWide).
        evaluation: Gives frame, crop and interpolation.
        size: Height and width of the images where the preprocessing does not crop.

    Raises:
        DataError: If the name is unknown.
    """
    if name == "none":
        return None
    if name == "flip":
        return Augmentation(name, v2.RandomHorizontalFlip(), framed=True)
    crop = evaluation.preprocessing.crop
    target = size if crop is None else (crop, crop)
    if target is None:
        raise ValueError("an augmentation that crops needs the size of the images")
    mode, antialias = evaluation.interpolation, evaluation.preprocessing.antialias
    crop_flip = [
        v2.RandomResizedCrop(target, interpolation=mode, antialias=antialias),
        v2.RandomHorizontalFlip(),
    ]
    further = {"crop_flip": [], "randaugment": [v2.RandAugment()], "trivial": [v2.TrivialAugmentWide()]}
    if name not in further:
        known = ["none", "flip", *further]
        raise DataError(f"data.augment: unknown '{name}'{nearest(name, known)}; choose from {', '.join(known)}")
    return Augmentation(name, v2.Compose([*crop_flip, *further[name]]), framed=False)
