"""Pairs of an image and its mask, as files or arrays, and what the values of a mask mean."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tlresearch.base.errors import one_line
from tlresearch.data.reading import for_each
from tlresearch.data.table import Checked, Images
from tlresearch.data.volumes import read_slice
from tlresearch.modality.decoding import Orientation, read_pixels
from tlresearch.modality.image import IGNORE

_PLAIN = {"RGBA": "RGB", "CMYK": "RGB", "LA": "L", "PA": "P"}
"""Modes of PIL without their transparency."""

Colour = tuple[int, ...]
"""A value of a mask: one number, or red, green and blue."""


@dataclass(frozen=True)
class Legend:
    """What the values of a mask mean.

    Attributes:
        classes: Class names in the order of their numbers.
        values: Value of each class in the mask files.
        ignore: Values of pixels that do not count.
    """

    classes: tuple[str, ...]
    values: tuple[Colour, ...]
    ignore: tuple[Colour, ...] = ()

    def numbers(self, pixels: np.ndarray) -> np.ndarray:
        """Turns a mask's pixels ``(H, W)`` or ``(H, W, 3)`` into class numbers, uint8 ``(H, W)``.

        Raises:
            ValueError: If a pixel has a value that means nothing.
        """
        if pixels.ndim == 3 and all(len(value) == 1 for value in self.values):
            pixels = without_colour(pixels)
        codes = _codes(pixels)
        known = {_code(value): number for number, value in enumerate(self.values)}
        known |= {_code(value): IGNORE for value in self.ignore}
        found, inverse = np.unique(codes, return_inverse=True)
        strange = [int(code) for code in found if int(code) not in known]
        if strange:
            raise ValueError(
                f"the value {_colour(strange[0], pixels.ndim)} in its mask is no class; "
                f"known are {', '.join(_text(value) for value in (*self.values, *self.ignore))} (data.options.classes "
                "and ignore); JPEG changes values, so masks are saved as PNG"
            )
        table = np.array([known[int(code)] for code in found], dtype=np.uint8)
        numbers: np.ndarray = table[inverse].reshape(codes.shape)
        return numbers


class Masks(Protocol):
    """Where masks are read from."""

    def pixels(self, index: int) -> tuple[np.ndarray, str]:
        """Returns a mask's pixels and the SHA-256 of its content.

        Raises:
            ValueError: If it cannot be read; the text says why.
        """
        ...


class FileMasks:
    """Masks in files below one root.

    Args:
        root: Folder the names are relative to.
        names: Paths relative to the root; of slices, see `slices_of`.
        orientation: See `Preprocessing.orientation`.
    """

    def __init__(self, root: Path, names: Sequence[str], orientation: Orientation = "exif") -> None:
        self.root = root
        self.names = names
        self.orientation = orientation

    def pixels(self, index: int) -> tuple[np.ndarray, str]:
        """Returns a mask's pixels, palette numbers where the file has a palette, and the SHA-256 of the file."""
        part = read_slice(self.root, self.names[index])
        if part is not None:
            numbers = np.rint(part.values).astype(np.int64)
            if not np.array_equal(numbers, part.values):
                raise ValueError(f"its mask {self.names[index]} has values that are no whole numbers")
            return numbers, part.digest
        try:
            content = (self.root / self.names[index]).read_bytes()
            pixels = read_pixels(content, _plain, self.orientation)
        except (OSError, ValueError) as error:
            raise ValueError(f"its mask {self.names[index]} cannot be read: {one_line(error, 200)}") from None
        return pixels.astype(np.int64), hashlib.sha256(content).hexdigest()


def _plain(image: Image.Image) -> np.ndarray:
    """Pixels without transparency: palette numbers where there is a palette, but of GIF, whose encoders number anew."""
    return np.array(image.convert("RGB" if image.format == "GIF" else _PLAIN.get(image.mode, image.mode)))


class ArrayMasks:
    """Masks in memory.

    Args:
        array: Integers ``(samples, H, W)``, or colours ``(samples, H, W, 3)``.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def pixels(self, index: int) -> tuple[np.ndarray, str]:
        """Returns a mask's pixels and the SHA-256 of type, shape and content."""
        mask = np.ascontiguousarray(self.array[index])
        digest = hashlib.sha256(f"{mask.dtype}{mask.shape}".encode() + mask.tobytes()).hexdigest()
        return mask.astype(np.int64), digest


class Pairs:
    """Images with their masks; checked together.

    Args:
        images: The images.
        masks: The masks, by the same positions.
        legend: What their values mean.
    """

    def __init__(self, images: Images, masks: Masks, legend: Legend) -> None:
        self.images = images
        self.masks = masks
        self.legend = legend

    def load(self, index: int, channels: int) -> Tensor:
        """Returns one image as uint8 ``(channels, H, W)``."""
        return self.images.load(index, channels)

    def mask(self, index: int) -> Tensor:
        """Returns class numbers, uint8 ``(H, W)``.

        Raises:
            ValueError: If the mask cannot be read or has a value that means nothing.
        """
        return torch.from_numpy(self.legend.numbers(self.masks.pixels(index)[0]))

    def check(self, indices: Sequence[int]) -> list[Checked]:
        """Reads every image and mask once; a pair's hash tells image, mask and legend."""
        checked = self.images.check(indices)
        return for_each(self._check, list(zip(indices, checked, strict=True)))

    def _check(self, pair: tuple[int, Checked]) -> Checked:
        index, image = pair
        if image.problem is not None:
            return image
        try:
            pixels, digest = self.masks.pixels(index)
            self.legend.numbers(pixels)
        except ValueError as error:
            return image._replace(problem=str(error))
        if pixels.shape[:2] != (image.height, image.width):
            mask = f"{pixels.shape[1]}x{pixels.shape[0]}"
            return image._replace(problem=f"it is {image.width}x{image.height} but its mask is {mask}")
        whole = hashlib.sha256(f"{image.digest} {digest} {self.legend}".encode()).hexdigest()
        return image._replace(digest=whole)


def found_legend(masks: Masks, count: int, ignore: Sequence[Colour]) -> Legend:
    """Makes a class of every value that occurs in grey masks; its name is the value.

    Raises:
        ValueError: If the masks are coloured, or have more values than classes would have.
    """
    values: set[int] = set()
    for index in range(count):
        try:
            pixels, _ = masks.pixels(index)
        except ValueError:  # named, or left out, where every sample is checked
            continue
        pixels = without_colour(pixels)
        if pixels.ndim == 3:
            raise ValueError("they are coloured")
        values |= set(np.unique(pixels).tolist())
        if len(values) > 64:
            raise ValueError("they have more than 64 values")
    kept = sorted(value for value in values if (value,) not in ignore)
    return Legend(tuple(str(v) for v in kept), tuple((v,) for v in kept), tuple(ignore))


def without_colour(pixels: np.ndarray) -> np.ndarray:
    """Returns a mask ``(H, W, 3)`` whose channels are equal as numbers ``(H, W)``; any other as it is."""
    grey = pixels.ndim == 3 and bool((pixels == pixels[..., :1]).all())
    return pixels[..., 0] if grey else pixels


def read_legend(classes: Mapping[str, object] | Sequence[object], ignore: object) -> Legend:
    """Reads a legend from a config or a file: names with their values, or names alone, numbered from 0.

    Raises:
        ValueError: If a value is neither a number nor a colour, or stands for two classes.
    """
    named = dict(classes) if isinstance(classes, Mapping) else {str(n): v for v, n in enumerate(classes)}
    values = tuple(_value(value) for value in named.values())
    left_out = ignored_values(ignore)
    if len(set(values + left_out)) < len(values + left_out):
        raise ValueError("two classes have the same value")
    if not 2 <= len(named) < IGNORE:
        raise ValueError(f"there must be 2 to {IGNORE - 1} classes, but there are {len(named)}")
    return Legend(tuple(str(name) for name in named), values, left_out)


def ignored_values(ignore: object) -> tuple[Colour, ...]:
    """Reads the values of pixels that do not count: none, one number or colour, or a list of colours.

    Raises:
        ValueError: If one is neither a number nor a colour.
    """
    if ignore is None:
        return ()
    several = isinstance(ignore, Sequence) and not isinstance(ignore, str)
    if several and any(isinstance(value, Sequence) for value in ignore):  # type: ignore[attr-defined]
        return tuple(_value(value) for value in ignore)  # type: ignore[attr-defined]
    return (_value(ignore),)


def _value(value: object) -> Colour:
    parts = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(parts) not in (1, 3) or not all(type(part) is int and part >= 0 for part in parts):
        raise ValueError(f"{value!r} is neither a number nor a colour [red, green, blue]")
    return parts


def _codes(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 2:
        return pixels
    codes: np.ndarray = (pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]) + (1 << 40)
    return codes


def _code(value: Colour) -> int:
    # Apart from numbers, so that a grey 255 is not the colour blue.
    return value[0] if len(value) == 1 else (value[0] << 16 | value[1] << 8 | value[2]) + (1 << 40)


def _colour(code: int, ndim: int) -> str:
    return str(code) if ndim == 2 else _text((code >> 16 & 255, code >> 8 & 255, code & 255))


def _text(value: Colour) -> str:
    return str(value[0]) if len(value) == 1 else str(list(value))
