"""Images: reading, framing, normalising and drawing them, also inside an exported graph."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from tlresearch.base.errors import DataError, UserError, nearest
from tlresearch.modality.base import Front, Modality, RawInput
from tlresearch.modality.decoding import Orientation, decode, to_channels
from tlresearch.modality.dicom import Window
from tlresearch.modality.values import Value

IGNORE = 255
"""Class number of pixels that count neither in the loss nor in a metric."""
COLOURS = 20
"""Number of different colours for classes; they repeat from there on."""
_FURTHER = (".jfif", ".jpe", ".jp2", ".avif", ".heic", ".heif", ".tga", ".dib")
"""Endings of still pictures that Pillow may read; ``.heic`` needs the package pillow-heif."""


def _readable() -> tuple[str, ...]:
    with contextlib.suppress(ImportError):  # an optional plug-in
        importlib.import_module("pillow_heif").register_heif_opener()
    registered = Image.registered_extensions()
    return tuple(ending for ending in _FURTHER if ending in registered)


EXTENSIONS = (*IMG_EXTENSIONS, *_readable(), ".dcm", ".dicom")
"""Endings of image files, in lower case. Not ``.gif``: many sites answer with one in the place of a missing photo."""
_LONGEST = 64  # longer sides are cut to this many times the shorter side; photos and panoramas have up to 10
_ARRAY = b"\x93NUMPY"
"""The first bytes of a ``.npy`` file."""
_STRENGTH = 0.5  # share of the class colour in an overlaid image
_MODES = ("bilinear", "bicubic")

# Minimum and maximum of whole numbers, which are symbols while torch traces a graph. torch annotates their result as a
# union that fits nowhere.
_least: Any = torch.sym_min
_most: Any = torch.sym_max


@dataclass(frozen=True)
class Preprocessing(Modality):
    """How an image becomes the network's input. It belongs to the weights, like their tensors.

    Attributes:
        crop: Side of the square input in pixels; ``None`` keeps the size of images.
        resize: Length of the shorter side before the centre crop, in pixels; ``None`` does not resize.
        mean: Mean of each channel, for values in [0, 1].
        std: Standard deviation of each channel.
        interpolation: Name in `torchvision.transforms.InterpolationMode`, such as ``"bilinear"``.
        antialias: Whether resizing filters before it samples.
        fit: How an image becomes square: ``crop`` cuts the borders of the resized image, ``stretch`` changes its
            proportions, ``letterbox`` resizes it to fit and fills the right and lower rest with the mean colour.
        orientation: How a file's pixels are turned: ``exif`` as viewers do, ``stored`` not at all.
        windows: Windows of intensities for files with more than 8 bits: none for the file's own, one, or one per
            channel.
    """

    crop: int | None
    resize: int | None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    antialias: bool = True
    fit: Literal["crop", "stretch", "letterbox"] = "crop"
    orientation: Orientation = "exif"
    windows: tuple[Window, ...] = ()

    sample = "image"

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return len(self.mean)

    def example(self) -> Value:
        """Returns the input of one sample (32 pixels if the size is free), without a batch dimension."""
        side = self.crop or 32
        return torch.zeros(self.channels, side, side)

    @property
    def raw(self) -> RawImages:
        """Raw samples: image files and arrays."""
        return RawImages(self.channels, self.windows, self.orientation)

    def prepare(self, sample: Tensor) -> Value:
        """Turns an image uint8 ``(C, H, W)`` into the network's input; see `Evaluation`."""
        return Evaluation(self)(to_channels(sample, self.channels))

    def handed(self, sample: Tensor) -> NDArray[Any]:
        """Returns an image as an array ``(H, W, C)``."""
        return sample.permute(1, 2, 0).numpy()

    def drawn(self, sample: Any) -> Any:
        """Returns an image of 1, 3 or 4 channels; ``None`` for any other, which cannot be shown."""
        return sample if sample.shape[0] in (1, 3, 4) else None

    def front(self) -> Frame:
        """Returns the module that frames and normalises images."""
        return Frame(self)

    def sized(self, image_size: int | None, resize: int | None = None) -> Preprocessing:
        """Returns the preprocessing for another input size.

        Args:
            image_size: Side of the input; ``None`` keeps it.
            resize: Length of the shorter edge before the crop; ``None`` keeps its proportion to the crop.
        """
        crop, edge = self.crop, self.resize
        if image_size is not None:
            edge = round(edge * image_size / crop) if edge is not None and crop is not None else image_size
            crop = image_size
        return replace(self, crop=crop, resize=resize if resize is not None else edge)


class RawImages(RawInput):
    """Images; a sample is uint8 ``(C, H, W)`` with as many channels as the network takes.

    Args:
        channels: Channels of the network's input.
        windows: See `Preprocessing.windows`.
        orientation: See `Preprocessing.orientation`.
    """

    name, column, suffixes, dims = "image", "image", (*EXTENSIONS, ".npy"), (2, 3)

    def __init__(self, channels: int, windows: Sequence[Window] = (), orientation: Orientation = "exif") -> None:
        self.channels = channels
        self.windows = windows
        self.orientation = orientation

    def decode(self, content: bytes) -> Tensor:
        """Decodes an image file as training does, or an array ``(H, W)`` or ``(H, W, C)`` in a ``.npy`` file."""
        if content.startswith(_ARRAY):
            return self.value(np.load(io.BytesIO(content), allow_pickle=False))
        return decode(content, self.channels, self.windows, self.orientation)

    def value(self, array: Any) -> Tensor:
        """Converts an array uint8 ``(H, W)`` or ``(H, W, C)``, or a tensor ``(C, H, W)`` as torch arranges images."""
        if isinstance(array, Tensor) and array.ndim == 3:
            array = array.permute(1, 2, 0)
        array = np.asarray(array)
        if str(array.dtype) != "uint8" or array.ndim not in self.dims:
            raise ValueError(f"images must be uint8 (height, width, channels) but got {array.dtype} {array.shape}")
        planes = array[:, :, None] if array.ndim == 2 else array
        image = torch.from_numpy(np.array(planes.transpose(2, 0, 1)))  # a copy: those of pictures are not writable
        return to_channels(image[:3] if len(image) == 4 and self.channels != 4 else image, self.channels)


class Evaluation:
    """Resizes, crops, scales to [0, 1] and normalises, like torchvision's ``weights.transforms()`` on tensors.

    It uses the functions of transforms v1 on purpose: v2 rounds differently when it resizes uint8, which changes a
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
        preprocessing = self.preprocessing
        fill = torch.tensor([round(255 * mean) for mean in preprocessing.mean], dtype=image.dtype)
        return framed(image, preprocessing, self.interpolation, antialias=preprocessing.antialias, fill=fill)

    def normalise(self, image: Tensor) -> Tensor:
        """Turns uint8 into float32 with mean 0 and standard deviation 1 per channel."""
        scaled = F.convert_image_dtype(image, torch.float32)
        result: Tensor = F.normalize(scaled, list(self.preprocessing.mean), list(self.preprocessing.std), inplace=True)
        return result


def interpolation(preprocessing: Preprocessing) -> InterpolationMode:
    """Looks up the interpolation by name.

    Raises:
        DataError: If there is none of that name.
    """
    names = [mode.value for mode in InterpolationMode]
    if preprocessing.interpolation not in names:
        raise DataError(
            f"unknown interpolation '{preprocessing.interpolation}'"
            f"{nearest(preprocessing.interpolation, names)}; choose from {', '.join(names)}"
        )
    return InterpolationMode(preprocessing.interpolation)


def framed(
    image: Tensor, preprocessing: Preprocessing, interpolation: InterpolationMode, *, antialias: bool, fill: Tensor
) -> Tensor:
    """Brings an image ``(..., C, H, W)`` to the input size; see `Preprocessing.fit`.

    Args:
        image: The image.
        preprocessing: Sizes and fit.
        interpolation: The interpolation of resizing.
        antialias: Whether resizing filters first.
        fill: Value of each channel ``(C,)`` where a letterbox has no image.
    """
    crop = preprocessing.crop
    if crop is None or preprocessing.fit == "crop":
        if preprocessing.resize is not None:
            image = F.resize(_without_ends(image), [preprocessing.resize], interpolation, antialias=antialias)
        return image if crop is None else F.center_crop(image, [crop, crop])
    height, width = inner_size(preprocessing, image.shape[-2], image.shape[-1])
    image = F.resize(image, [height, width], interpolation, antialias=antialias)
    if (height, width) == (crop, crop):
        return image
    canvas = fill.view(-1, 1, 1).repeat(1, crop, crop).expand(*image.shape[:-2], -1, -1).clone()
    canvas[..., :height, :width] = image
    return canvas


def _without_ends(image: Tensor) -> Tensor:
    """Cuts the ends off a very long image, such as a failed crop of 1 x 6000 pixels.

    Resizing it by its shorter side would make 256 x 1536000 pixels, of which the centre crop then takes none at the
    ends.
    """
    height, width = image.shape[-2:]
    longest = _LONGEST * min(height, width)
    top, left = (max(0, side - longest) // 2 for side in (height, width))
    return image[..., top : height - top, left : width - left]


def framed_mask(mask: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Brings class numbers ``(H, W)`` to the input size; a letterbox is filled with `IGNORE`."""
    fill = torch.tensor([IGNORE], dtype=mask.dtype)
    return framed(mask[None], preprocessing, InterpolationMode.NEAREST, antialias=False, fill=fill)[0]


def framed_boxes(boxes: Tensor, preprocessing: Preprocessing, height: int, width: int) -> Tensor:
    """Scales boxes ``(n, 4 or more)``, whose first four columns are x0, y0, x1, y1 in pixels, with their image.

    Args:
        boxes: The boxes; further columns stay.
        preprocessing: Sizes and fit, which must not be ``crop``.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
    """
    if preprocessing.crop is None:
        return boxes
    inner_height, inner_width = inner_size(preprocessing, height, width)
    scale = torch.tensor([inner_width / width, inner_height / height] * 2)
    return torch.cat([boxes[:, :4] * scale, boxes[:, 4:]], dim=1)


def inner_size(preprocessing: Preprocessing, height: int, width: int) -> tuple[int, int]:
    """Returns height and width in pixels of an image within its frame, for a fit that is not ``crop``."""
    crop = preprocessing.crop
    if crop is None or preprocessing.fit == "crop":
        raise ValueError("only an image that is fitted into a frame has an inner size")
    if preprocessing.fit == "stretch":
        return crop, crop
    scale = crop / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


class Frame(Front):
    """Does what `Evaluation` does, in operations that a traced graph holds for images of any size.

    All sizes are computed in whole numbers from the symbolic size of the input. The result equals that of torchvision's
    functions on uint8 tensors, which round the resized image to whole levels.

    Args:
        preprocessing: Sizes, statistics, interpolation and fit.

    Raises:
        UserError: If a graph has no operation for the interpolation.
    """

    inputs: Mapping[str, str] = {"images": "uint8 (N, height, width, channels), of any size; all of one batch alike"}
    inside = "resize, centre crop, scale to [0, 1], normalise, {network}; decoding files is outside"
    sides = (0, 1, 2)

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        if preprocessing.interpolation not in _MODES:
            raise UserError(
                f"export: images are resized with {preprocessing.interpolation} interpolation, but an exported model "
                f"has {' or '.join(_MODES)} only"
            )
        self.resize = 0 if preprocessing.resize is None else preprocessing.resize
        self.crop = 0 if preprocessing.crop is None else preprocessing.crop
        self.fit = "crop" if self.crop == 0 else str(preprocessing.fit)
        self.mode = preprocessing.interpolation
        self.antialias = preprocessing.antialias
        self.mean: Tensor
        self.std: Tensor
        self.fill: Tensor
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1))
        self.register_buffer("fill", (255 * self.mean).round())

    def forward(self, images: Tensor) -> Tensor:
        """Turns uint8 ``(N, H, W, C)`` into the network's input ``(N, C, crop, crop)``, float32."""
        x = images.permute(0, 3, 1, 2).float()
        if self.fit != "crop":
            x = self._fitted(x)
        else:
            if self.resize > 0:
                x = self._without_ends(x)
                short = _least(x.shape[2], x.shape[3])
                x = self._resized(x, self.resize * x.shape[2] // short, self.resize * x.shape[3] // short)
            if self.crop > 0:
                if self.resize == 0:
                    x = self._padded(x)
                x = x.narrow(2, self._start(x.shape[2]), self.crop).narrow(3, self._start(x.shape[3]), self.crop)
        return (x / 255.0 - self.mean) / self.std

    def arrays(self, samples: Sequence[Any]) -> tuple[NDArray[Any], ...]:
        """Turns images uint8 ``(C, H, W)`` of one size into ``(N, H, W, C)``."""
        return (np.ascontiguousarray(torch.stack(list(samples)).permute(0, 2, 3, 1).numpy()),)

    def example(self) -> tuple[Tensor, ...]:
        """Returns two black images."""
        return (torch.zeros(2, 48, 64, self.preprocessing.channels, dtype=torch.uint8),)

    def metadata(self) -> dict[str, str]:
        """Returns sizes, statistics and interpolation."""
        return {"preprocessing": json.dumps(self.preprocessing.description())}

    def unframed(self, scores: Tensor, *arrays: Tensor) -> Tensor:
        """Brings scores ``(N, classes, crop, crop)`` back to the size of their images.

        With the fit ``crop`` they stay, because scores of the parts that were cut off are missing.
        """
        (images,) = arrays
        if self.fit == "crop":
            return scores
        height, width = images.shape[1], images.shape[2]
        if self.fit == "letterbox":
            scores = scores.narrow(2, 0, self._inner(height, width)).narrow(3, 0, self._inner(width, height))
        return functional.interpolate(scores, size=[height, width], mode="bilinear", align_corners=False)

    def _fitted(self, x: Tensor) -> Tensor:
        if self.fit == "stretch":
            return self._resized(x, self.crop, self.crop)
        height, width = self._inner(x.shape[2], x.shape[3]), self._inner(x.shape[3], x.shape[2])
        x = self._resized(x, height, width)
        # Fill up with the mean colour: `pad` has one value for all channels, so it pads differences from the mean by 0.
        return functional.pad(x - self.fill, [0, self.crop - width, 0, self.crop - height]) + self.fill

    def _inner(self, side: int, across: int) -> int:
        """Returns a side of the image within a letterbox: ``max(1, round(side * crop / longer side))``.

        Computed without floats and branches, which a traced graph cannot have here: `up` and `tie` are 0 or 1.
        Python's `round`, which `inner_size` uses, rounds halves to the even number.
        """
        longer: int = _most(side, across)
        whole = side * self.crop // longer
        excess = 2 * (side * self.crop - whole * longer) - longer  # positive above one half, 0 at one half
        up = _least(_most(excess, 0), 1)
        tie = 1 - _least(_most(excess, -excess), 1)
        inner: int = _most(whole + up + tie * (whole % 2), 1)
        return inner

    def _resized(self, x: Tensor, height: int, width: int) -> Tensor:
        x = functional.interpolate(
            x,
            size=[height, width],
            mode=self.mode,
            antialias=self.antialias,
            align_corners=False,
        )
        if self.mode == "bicubic":
            x = x.clamp(0.0, 255.0)  # bicubic interpolation overshoots at edges
        return x.round()

    def _without_ends(self, x: Tensor) -> Tensor:
        """Cuts the ends off a sliver, as the function of that name."""
        longest = _LONGEST * _least(x.shape[2], x.shape[3])
        for side in (2, 3):
            ends = _most(x.shape[side] - longest, 0) // 2
            x = x.narrow(side, ends, x.shape[side] - 2 * ends)
        return x

    def _padded(self, x: Tensor) -> Tensor:
        """Pads images that are smaller than the crop with black, like torchvision's `center_crop`."""
        lacks_h, lacks_w = _most(self.crop - x.shape[2], 0), _most(self.crop - x.shape[3], 0)
        sides = [lacks_w // 2, (lacks_w + 1) // 2, lacks_h // 2, (lacks_h + 1) // 2]
        return functional.pad(x, sides)

    def _start(self, size: int) -> int:
        """Returns the first row or column of the crop: half of the excess, rounded like Python's `round`.

        That rounds halves to the even number, and torchvision's `center_crop` uses it.
        """
        half = (size - self.crop) // 2
        return half + ((size - self.crop) % 2) * (half % 2)


def three_channels(image: Tensor) -> Any:
    """Returns an image ``(C, H, W)`` as an array ``(H, W, 3)``; grey, unless it has three channels."""
    pixels = image.numpy()
    if len(pixels) != 3:
        pixels = np.repeat(pixels.mean(axis=0, keepdims=True).astype(np.uint8), 3, axis=0)
    return pixels.transpose(1, 2, 0)


def overlaid(image: Any, mask: Any, palette: Sequence[Sequence[float]]) -> Any:
    """Mixes class colours into an image; pixels that do not count stay as they are."""
    colours = (255 * np.array([*palette, (0.0, 0.0, 0.0)])).astype(np.uint8)
    mixed = (1 - _STRENGTH) * image + _STRENGTH * colours[np.minimum(mask, len(palette))]
    return np.where((mask == IGNORE)[..., None], image, mixed).astype(np.uint8)


def colours(count: int) -> list[tuple[float, ...]]:
    """Returns a colour for each class, red, green and blue in 0 to 1, as in the figures of a run."""
    from matplotlib import colormaps

    names = colormaps["tab10" if count <= 10 else "tab20"]
    return [tuple(names(number % COLOURS)[:3]) for number in range(count)]


def with_palette(numbers: np.ndarray, palette: Sequence[Sequence[float]]) -> Image.Image:
    """Makes a picture whose pixels are class numbers, and which viewers show in colours."""
    picture = Image.fromarray(numbers, mode="P")
    picture.putpalette([round(255 * part) for colour in palette for part in colour])
    return picture
