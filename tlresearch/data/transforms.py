"""What is done to an image before the network: the weights' own preprocessing, and random augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from tlresearch.data.base import Preprocessing
from tlresearch.errors import DataError, nearest

Augmentation = Callable[[Tensor], Tensor]


def resized(preprocessing: Preprocessing, image_size: int | None) -> Preprocessing:
    """Returns the preprocessing for another input size; the resize keeps its proportion to the crop."""
    if image_size is None:
        return preprocessing
    crop, resize = preprocessing.crop, preprocessing.resize
    scaled = round(resize * image_size / crop) if resize is not None and crop is not None else image_size
    return replace(preprocessing, crop=image_size, resize=scaled)


class Evaluation:
    """Resize, centre crop, scale to [0, 1], normalise: as torchvision's ``weights.transforms()`` on tensors.

    The functions of transforms v1 are used on purpose: v2 resizes uint8 with other rounding, which moves a
    sixth of the pixels by one level and depends on the processor.

    Args:
        preprocessing: Sizes, statistics and interpolation.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.interpolation = interpolation(preprocessing)

    def __call__(self, image: Tensor) -> Tensor:
        """Turns uint8 ``(..., C, H, W)`` into the network's input."""
        return self.normalise(self.frame(image))

    def frame(self, image: Tensor) -> Tensor:
        """Resizes and crops; the result is still uint8."""
        wanted = self.preprocessing
        if wanted.resize is not None:
            image = F.resize(image, [wanted.resize], self.interpolation, antialias=wanted.antialias)
        if wanted.crop is not None:
            image = F.center_crop(image, [wanted.crop, wanted.crop])
        return image

    def normalise(self, image: Tensor) -> Tensor:
        """Turns uint8 into float32 with the channels' mean and spread taken out."""
        scaled = F.convert_image_dtype(image, torch.float32)
        result: Tensor = F.normalize(scaled, list(self.preprocessing.mean), list(self.preprocessing.std))
        return result


def interpolation(preprocessing: Preprocessing) -> InterpolationMode:
    """Looks up the interpolation by name.

    Raises:
        DataError: If there is none of that name.
    """
    known = [mode.value for mode in InterpolationMode]
    if preprocessing.interpolation not in known:
        raise DataError(
            f"unknown interpolation '{preprocessing.interpolation}'"
            f"{nearest(preprocessing.interpolation, known)}; choose from {', '.join(known)}"
        )
    return InterpolationMode(preprocessing.interpolation)


def build_augmentation(
    name: str, evaluation: Evaluation, *, size: tuple[int, int] | None = None
) -> Augmentation | None:
    """Builds the random transform from a stored image to a uint8 image of input size; ``None`` for `none`.

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
        return _chain([evaluation.frame, v2.RandomHorizontalFlip()])
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
    return _chain([*crop_flip, *further[name]])


def _chain(steps: list[Augmentation]) -> Augmentation:
    composed: Augmentation = v2.Compose(steps)
    return composed
