"""Corrupted images of five strengths in the manner of ImageNet-C (Hendrycks and Dietterich 2019), always the same ones.

The strengths are those of the authors' code for images of about 224 pixels. They act on the framed image, as there.
Noise and blur are torchvision's functions, pixels and JPEG are Pillow's, weather is in `weather.py`, so that no further
library is needed; what is random is drawn from the name of the sample, so that a set is the same in every run.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as F

from tlresearch.base.errors import DataError
from tlresearch.data import weather
from tlresearch.data.base import Batch, SampleKey, Split
from tlresearch.data.seeding import seeded
from tlresearch.modality.values import Value


def corrupt(image: Tensor, kind: str, severity: int) -> Tensor:
    """Corrupts an image; noise is drawn from torch's global generator.

    Args:
        image: uint8 ``(C, H, W)``.
        kind: A key of `CORRUPTIONS`.
        severity: 1 to 5.
    """
    function, strengths = CORRUPTIONS[kind]
    changed = function(image.float() / 255, strengths[severity - 1])
    return (changed.clamp(0, 1) * 255).to(torch.uint8)


def _gaussian_noise(image: Tensor, sigma: float) -> Tensor:
    noisy: Tensor = F.gaussian_noise(image, sigma=sigma, clip=False)
    return noisy


def _shot_noise(image: Tensor, photons: float) -> Tensor:
    return torch.poisson(image * photons) / photons


def _impulse_noise(image: Tensor, share: float) -> Tensor:
    drawn = torch.rand_like(image)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn > 1 - share / 2, 1.0, image))


def _defocus_blur(image: Tensor, disk: tuple[int, float]) -> Tensor:
    """Blurs by a disk of a radius in pixels, whose edge is softened."""
    radius, alias = disk
    reach = max(8, radius)
    line = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = ((line[:, None] ** 2 + line[None, :] ** 2) <= radius**2).float()
    side = 3 if radius <= 8 else 5
    kernel = F.gaussian_blur((kernel / kernel.sum())[None], [side, side], [alias, alias])
    channels = image.shape[0]
    # Images smaller than the disk have too little to mirror.
    mode = "reflect" if reach < min(image.shape[1:]) else "replicate"
    padded = functional.pad(image[None], (reach,) * 4, mode=mode)
    return functional.conv2d(padded, kernel[None].expand(channels, 1, -1, -1), groups=channels)[0]


def _gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    reach = min(int(4 * sigma + 0.5), min(image.shape[1:]) - 1)
    blurred: Tensor = F.gaussian_blur(image, [2 * reach + 1, 2 * reach + 1], [sigma, sigma])
    return blurred


def _brightness(image: Tensor, added: float) -> Tensor:
    """Adds to the value of hue, saturation and value."""
    value = image.amax(dim=0, keepdim=True)
    wanted = (value + added).clamp(max=1)
    return torch.where(value > 0, image * wanted / value.clamp(min=1e-6), wanted)


def _contrast(image: Tensor, factor: float) -> Tensor:
    mean = image.mean(dim=(1, 2), keepdim=True)
    return (image - mean) * factor + mean


def _pixelate(image: Tensor, factor: float) -> Tensor:
    pixels = _to_pillow(image)
    small = pixels.resize(
        (max(1, int(pixels.width * factor)), max(1, int(pixels.height * factor))), Image.Resampling.BOX
    )
    return _from_pillow(small.resize(pixels.size, Image.Resampling.BOX))


def _jpeg(image: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=quality)
    return _from_pillow(Image.open(file))


def _to_pillow(image: Tensor) -> Image.Image:
    pixels = (image * 255).round().to(torch.uint8)
    return Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy())


def _from_pillow(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)
    return pixels.permute(2, 0, 1).float() / 255


CORRUPTIONS: Mapping[str, tuple[Callable[[Tensor, Any], Tensor], Sequence[Any]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (_defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "motion_blur": (weather.motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (weather.zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": (
        weather.snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "fog": (weather.fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg, (25, 18, 15, 10, 7)),
}
"""What is done to an image in [0, 1], and the five strengths of it."""


class CorruptedSplit(Split):
    """A split of images, each corrupted in one way.

    Args:
        split: The images: a split whose `load` gives framed uint8 images.
        kind: Kind of the corruption.
        severity: Its strength, 1 to 5.
        name: What the set is called in errors.

    Raises:
        DataError: If the samples are no such images.
    """

    def __init__(self, split: Split, kind: str, severity: int, *, name: str) -> None:
        sample = split.load(0) if split.deterministic else None
        if not (isinstance(sample, Tensor) and sample.dtype == torch.uint8 and sample.ndim == 3):
            raise DataError(
                f"data.shift[{name}].corruptions: only images with classes are corrupted; "
                "name another set of this kind of sample instead, by what differs in `data`"
            )
        self.split = split
        self.kind, self.severity = kind, severity
        self.targets, self.names = split.targets, split.names

    @property
    def load_key(self) -> str:
        """What `load` depends on: images whose decoding is no work are kept too, as the corruption is."""
        return f"{self.split.load_key}, {self.kind} {self.severity}"

    def load(self, index: int) -> Tensor:
        """Returns a corrupted image, uint8 ``(C, H, W)``; the same sample is corrupted in the same way."""
        image = cast(Tensor, self.split.load(index))
        with seeded("corruption", self.kind, self.severity, self.names[index]):
            return corrupt(image, self.kind, self.severity)

    def finish(self, values: Sequence[Value], keys: Sequence[SampleKey]) -> Batch:
        """Normalises images and adds their targets."""
        return self.split.finish(values, keys)

    def raw(self, index: int) -> Any:
        """Returns the image before preprocessing and corruption."""
        return self.split.raw(index)
