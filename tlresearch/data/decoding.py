"""Turns the bytes of an image file into a uint8 tensor with 1 or 3 channels."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as F

from tlresearch.base.errors import one_line
from tlresearch.data.dicom import Window, is_dicom, read_dicom


def decode(content: bytes, channels: int, windows: Sequence[Window] = ()) -> Tensor:
    """Decodes an image file; alpha is dropped, the first frame is taken, EXIF rotation is not applied.

    PIL decodes every format: torchvision's own decoders give the same pixels, know fewer formats and are
    deprecated since 0.29. DICOM files need the extra `medical`.

    Args:
        content: The bytes of the file.
        channels: Channels of the result, 1 or 3.
        windows: Intensities shown of a DICOM file; see `read_dicom`.

    Raises:
        ValueError: If it cannot be decoded; the text says why.
    """
    if is_dicom(content):
        return as_tensor(read_dicom(content, windows), channels)
    return as_tensor(read_pixels(content, lambda image: _to_uint8(image, channels)), channels)


def read_pixels(content: bytes, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Decodes an image file by PIL, which refuses more than 179 million pixels.

    Args:
        content: The bytes of the file.
        convert: Takes the pixels from the decoded image.

    Raises:
        ValueError: If it cannot be decoded; the text says why.
    """
    if not content:
        raise ValueError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return convert(image)
    except UnidentifiedImageError:
        raise ValueError("not an image, or a damaged one") from None
    except Exception as error:  # of a damaged file a plug-in of PIL raises whatever its broken part leads to
        raise ValueError(one_line(error)) from None


def as_tensor(pixels: np.ndarray, channels: int) -> Tensor:
    """Turns pixels ``(H, W, 1 or 3)`` into a tensor ``(channels, H, W)``."""
    return to_channels(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), channels)


def _to_uint8(image: Image.Image, channels: int) -> np.ndarray:
    """Returns ``(H, W, 1 or 3)``."""
    if image.mode.startswith("I;16"):
        # PIL's own conversion clips at 255, which turns most 16-bit images white.
        return (np.asarray(image) >> 8).astype(np.uint8)[..., None]
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} (32 bit); convert the image to 8 or 16 bit")
    if channels == 1 or image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))[..., None]
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, PIL warns that the transparency is lost.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def to_channels(image: Tensor, channels: int) -> Tensor:
    """Repeats grey ``(..., 1, H, W)``, or turns RGB to grey.

    Raises:
        ValueError: If the image has another number of channels.
    """
    given = image.shape[-3]
    if given == channels:
        return image
    if given not in (1, 3) or (given == 3 and channels != 1):
        raise ValueError(f"it has {given} channels but the network takes {channels}: set backbone.in_channels={given}")
    if channels == 1:
        grey: Tensor = F.rgb_to_grayscale(image)
        return grey
    return image.repeat_interleave(channels, dim=-3)
