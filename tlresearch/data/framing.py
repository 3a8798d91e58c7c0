"""How images, masks and boxes get the size of the network's input, all in the same way."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from tlresearch.data.base import Preprocessing

_LONGEST = 64  # times the shorter side of a picture that is resized by it; photos and panoramas have up to 10
IGNORE = 255
"""Class number of pixels that count neither in the loss nor in a metric."""


def framed(
    image: Tensor, wanted: Preprocessing, interpolation: InterpolationMode, *, antialias: bool, fill: Tensor
) -> Tensor:
    """Brings an image ``(..., C, H, W)`` to the input size; see `Preprocessing.fit`.

    Args:
        image: The image.
        wanted: Sizes and fit.
        interpolation: How it is sampled.
        antialias: Whether resizing filters first.
        fill: Value of each channel where a letterbox has no image, ``(C,)``.
    """
    if wanted.crop is None or wanted.fit == "crop":
        if wanted.resize is not None:
            image = F.resize(_without_ends(image), [wanted.resize], interpolation, antialias=antialias)
        return image if wanted.crop is None else F.center_crop(image, [wanted.crop, wanted.crop])
    height, width = inner_size(wanted, image.shape[-2], image.shape[-1])
    image = F.resize(image, [height, width], interpolation, antialias=antialias)
    if (height, width) == (wanted.crop, wanted.crop):
        return image
    whole = fill.view(-1, 1, 1).repeat(1, wanted.crop, wanted.crop).expand(*image.shape[:-2], -1, -1).clone()
    whole[..., :height, :width] = image
    return whole


def _without_ends(image: Tensor) -> Tensor:
    """Cuts the ends off a sliver: of a failed crop of 1 x 6000 pixels, resizing would make 256 x 1536000.

    The centre crop that follows sees none of them.
    """
    height, width = image.shape[-2:]
    longest = _LONGEST * min(height, width)
    top, left = (max(0, side - longest) // 2 for side in (height, width))
    return image[..., top : height - top, left : width - left]


def framed_mask(mask: Tensor, wanted: Preprocessing) -> Tensor:
    """Brings class numbers ``(H, W)`` to the input size; a letterbox is filled with `IGNORE`."""
    fill = torch.tensor([IGNORE], dtype=mask.dtype)
    return framed(mask[None], wanted, InterpolationMode.NEAREST, antialias=False, fill=fill)[0]


def framed_boxes(boxes: Tensor, wanted: Preprocessing, height: int, width: int) -> Tensor:
    """Scales boxes ``(n, 4 or more)``, whose first four columns are x0, y0, x1, y1 in pixels, with their image.

    Args:
        boxes: The boxes; further columns stay.
        wanted: Sizes and fit, which must not be ``crop``.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    if wanted.crop is None:
        return boxes
    inner_height, inner_width = inner_size(wanted, height, width)
    scale = torch.tensor([inner_width / width, inner_height / height] * 2)
    return torch.cat([boxes[:, :4] * scale, boxes[:, 4:]], dim=1)


def inner_size(wanted: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels of an image within its frame, for a fit that is not ``crop``."""
    if wanted.crop is None or wanted.fit == "crop":
        raise ValueError("only an image that is fitted into a frame has an inner size")
    if wanted.fit == "stretch":
        return wanted.crop, wanted.crop
    scale = wanted.crop / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
