"""Decodes image files to uint8 tensors with 1 or 3 channels."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import functional as F

from tlresearch.base.errors import one_line
from tlresearch.base.files import disguise
from tlresearch.modality.dicom import Window, is_dicom, read_dicom, show

ResultT = TypeVar("ResultT")
Orientation = Literal["exif", "stored"]

_ORIENTATION, _LARGEST, _BITS = 0x0112, 281, 258
"""Tags of EXIF and TIFF: orientation, MaxSampleValue, BitsPerSample."""
_DEEPEST = ("I", "F")
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", *_DEEPEST)
"""Modes of PIL with more than 8 bits; `_DEEPEST` have 32."""
NEEDS_WINDOW = "pixels of 32 bit; set data.options.window=[centre, width], or convert it to 8 or 16 bit"
_PAGED = ("TIFF", "PNG", "WEBP", "GIF", "AVIF")
"""Formats whose further pages and frames are pictures, too. In a JPEG of a phone they are previews."""
_TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns the stored pixels into the picture that viewers show, by EXIF orientation."""


class Measured(NamedTuple):
    """Properties of an image file that do not depend on windows and orientation.

    Attributes:
        height: Height in pixels as the file stores it.
        width: Width in pixels as the file stores it.
        turn: Number of its EXIF orientation: 1 is upright; from 5 on height and width are exchanged.
        low: Smallest value of a picture with more than 8 bits; otherwise 0.
        high: Its largest value; otherwise 0.
        bits: Bits that its values use, according to the file; otherwise 8.
        pages: Number of its pages or frames, of which the first is used.
    """

    height: int
    width: int
    turn: int = 1
    low: int = 0
    high: int = 0
    bits: int = 8
    pages: int = 1

    def size(self, orientation: Orientation) -> tuple[int, int]:
        """Height and width of the picture as it is shown."""
        turned = orientation == "exif" and self.turn > 4
        return (self.width, self.height) if turned else (self.height, self.width)

    def is_flat(self, windows: Sequence[Window]) -> bool:
        """Whether all values, which differ in the file, become the same in 8 bits."""
        if self.low == self.high:
            return False
        ends = _narrowed(np.array([[self.low, self.high]]), self.bits, windows)
        return bool((ends[:, 0] == ends[:, 1]).all())


def decode(content: bytes, channels: int, windows: Sequence[Window] = (), orientation: Orientation = "exif") -> Tensor:
    """Decodes an image file; drops alpha, and takes the first frame.

    PIL decodes all formats: torchvision's own decoders give the same pixels, but know fewer formats and are deprecated
    since 0.29. DICOM files need the extra `medical`.

    Args:
        content: The bytes of the file.
        channels: Channels of the result, 1 or 3.
        windows: Windows of intensities for files with more than 8 bits; see `read_dicom`. Without any, a picture of 16
            bits is reduced to the highest 8 of the bits that it uses according to the file.
        orientation: See `Preprocessing.orientation`.

    Raises:
        ValueError: If it cannot be decoded; the text says why.
    """
    if is_dicom(content):
        return as_tensor(read_dicom(content, windows), channels)
    bits = _png_bits(content)
    return as_tensor(
        read_pixels(content, lambda image: _to_uint8(image, channels, bits, windows), orientation), channels
    )


def measure(content: bytes) -> Measured:
    """Decodes an image file and returns its properties.

    Raises:
        ValueError: If it cannot be decoded; the text says why.
    """
    if is_dicom(content):
        height, width = read_dicom(content).shape[:2]
        return Measured(height, width)

    def properties(image: Image.Image) -> Measured:
        turn, pages = _turn(image), getattr(image, "n_frames", 1) if image.format in _PAGED else 1
        if image.mode in _DEEP:
            values = np.asarray(image)
            low, high = (int(values.min()), int(values.max())) if image.mode != "F" else (0, 0)
            bits = 32 if image.mode in _DEEPEST else _bits(image, _png_bits(content))
            return Measured(image.height, image.width, turn, low, high, bits, pages)
        image.convert("RGB" if image.mode != "P" else "RGBA")  # fails now, not in training, if the palette is broken
        return Measured(image.height, image.width, turn, pages=pages)

    return _opened(content, properties)


def read_pixels(
    content: bytes, convert: Callable[[Image.Image], np.ndarray], orientation: Orientation = "exif"
) -> np.ndarray:
    """Decodes an image file by PIL, which refuses more than 179 million pixels.

    Args:
        content: The bytes of the file.
        convert: Returns the pixels of a decoded image.
        orientation: See `Preprocessing.orientation`.

    Raises:
        ValueError: If it cannot be decoded; the text says why.
    """
    return _opened(content, lambda image: convert(turned(image) if orientation == "exif" else image))


def _opened(content: bytes, use: Callable[[Image.Image], ResultT]) -> ResultT:
    if not content:
        raise ValueError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return use(image)
    except UnidentifiedImageError:
        disguised = disguise(content)
        raise ValueError(f"not an image: {disguised}" if disguised else "not an image, or a damaged one") from None
    except Exception as error:  # for a damaged file PIL's plug-ins raise errors of any class
        raise ValueError(one_line(error)) from None


def as_tensor(pixels: np.ndarray, channels: int) -> Tensor:
    """Turns pixels ``(H, W, 1 or 3)`` into a tensor ``(channels, H, W)``."""
    return to_channels(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), channels)


def _turn(image: Image.Image) -> int:
    """Returns the number of the EXIF orientation of a loaded image.

    Only of a loaded image: PIL applies the orientation of TIFF and AVIF files itself while it loads them.
    """
    try:
        turn = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # viewers ignore damaged EXIF, too
        return 1
    return turn if turn in _TURNS else 1


def turned(image: Image.Image) -> Image.Image:
    """Turns a loaded picture by its EXIF orientation."""
    operation = _TURNS[_turn(image)]
    return image if operation is None else image.transpose(operation)


def _png_bits(content: bytes) -> int | None:
    """Returns the bits that a grey PNG uses, from its chunk ``sBIT``, which PIL does not read."""
    if not content.startswith(b"\x89PNG"):
        return None
    start = content.find(b"sBIT", 0, max(0, content.find(b"IDAT")))
    return content[start + 4] if start > 0 and 1 <= content[start + 4] <= 16 else None


def _bits(image: Image.Image, png: int | None) -> int:
    """Returns the bits that the values of a picture of 16 bits use, according to the file."""
    if png is not None:
        return png
    tags = getattr(image, "tag_v2", {})  # only TIFF has them
    largest, stored = tags.get(_LARGEST), tags.get(_BITS)
    largest, stored = (value[0] if isinstance(value, tuple) and value else value for value in (largest, stored))
    if isinstance(largest, int) and 0 < largest < 65536:
        return largest.bit_length()
    return stored if isinstance(stored, int) and 8 <= stored <= 16 else 16


def _narrowed(values: np.ndarray, bits: int, windows: Sequence[Window]) -> np.ndarray:
    """Reduces values ``(H, W)`` of more than 8 bits to 8: through windows, else by dropping the lowest bits."""
    if windows:
        return np.stack([show(values, window) for window in windows], axis=-1)
    return (values >> max(0, bits - 8)).clip(0, 255).astype(np.uint8)[..., None]


def _to_uint8(image: Image.Image, channels: int, bits: int | None, windows: Sequence[Window]) -> np.ndarray:
    """Converts an image to uint8 ``(H, W, 1 or 3)``."""
    if image.mode in _DEEP:
        if image.mode in _DEEPEST and not windows:
            raise ValueError(NEEDS_WINDOW)
        # PIL's own conversion clips at 255, which makes most 16-bit images white.
        return _narrowed(np.asarray(image), _bits(image, bits), windows)
    if channels == 1 or image.mode in ("1", "L", "LA"):
        return np.array(image.convert("L"))[..., None]
    if image.mode == "P" and "transparency" in image.info:
        # Converting straight to RGB, PIL warns that the transparency is lost.
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def to_channels(image: Tensor, channels: int) -> Tensor:
    """Repeats grey ``(..., 1, H, W)``, or converts RGB to grey.

    Raises:
        ValueError: If the image has another number of channels.
    """
    own = image.shape[-3]
    if own == channels:
        return image
    if own not in (1, 3) or (own == 3 and channels != 1):
        raise ValueError(f"it has {own} channels but the network takes {channels}: set backbone.in_channels={own}")
    if channels == 1:
        grey: Tensor = F.rgb_to_grayscale(image)
        return grey
    return image.repeat_interleave(channels, dim=-3)
