"""Random augmentation of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torchvision.transforms import v2

from tlresearch.base.errors import DataError, nearest
from tlresearch.modality.image import Evaluation


@dataclass(frozen=True)
class Augmentation:
    """A random transform of uint8 images, alone or with a target; it draws from torch's global generator.

    Attributes:
        name: The value of ``data.augment``.
        transform: From a framed or a decoded image to one of input size; of image and target, both.
        framed: Whether it takes framed images, which are of one size; else whole decoded ones.
    """

    name: str
    transform: Callable[..., Any]
    framed: bool

    def __call__(self, *parts: Any) -> Any:
        """Augments one image, or an image and its target."""
        return self.transform(*parts)


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


def build_joint(name: str, evaluation: Evaluation, side: int) -> Augmentation | None:
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
        return Augmentation(name, v2.RandomHorizontalFlip(), framed=True)
    if name != "crop_flip":
        raise DataError(f"data.augment: {name} moves images without their masks or boxes; use none, flip or crop_flip")
    mode, antialias = evaluation.interpolation, evaluation.preprocessing.antialias
    crop = v2.RandomResizedCrop((side, side), scale=(0.25, 1.0), interpolation=mode, antialias=antialias)
    return Augmentation(name, v2.Compose([crop, v2.RandomHorizontalFlip()]), framed=False)
