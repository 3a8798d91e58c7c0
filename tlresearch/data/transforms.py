"""What is done to an image before the network: the weights' own preprocessing, and random augmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from tlresearch.base.errors import DataError, nearest
from tlresearch.data.base import Preprocessing
from tlresearch.data.framing import framed


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


def resized(preprocessing: Preprocessing, image_size: int | None, resize: int | None = None) -> Preprocessing:
    """Returns the preprocessing for another input size.

    Args:
        preprocessing: The backbone's own.
        image_size: Side of the input; ``None`` keeps it.
        resize: Length the shorter edge is brought to in front of the crop; ``None`` keeps its proportion to the crop.
    """
    crop, edge = preprocessing.crop, preprocessing.resize
    if image_size is not None:
        edge = round(edge * image_size / crop) if edge is not None and crop is not None else image_size
        crop = image_size
    return replace(preprocessing, crop=crop, resize=resize if resize is not None else edge)


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
        """Resizes, crops or fills up; the result is still uint8."""
        wanted = self.preprocessing
        fill = torch.tensor([round(255 * mean) for mean in wanted.mean], dtype=image.dtype)
        return framed(image, wanted, self.interpolation, antialias=wanted.antialias, fill=fill)

    def normalise(self, image: Tensor) -> Tensor:
        """Turns uint8 into float32 with the channels' mean and spread taken out."""
        scaled = F.convert_image_dtype(image, torch.float32)
        result: Tensor = F.normalize(scaled, list(self.preprocessing.mean), list(self.preprocessing.std), inplace=True)
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
