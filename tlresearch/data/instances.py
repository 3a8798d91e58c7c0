"""Masks of single objects: where they are read from, and how they move with their image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode

from tlresearch.base.errors import MissingExtraError, one_line
from tlresearch.base.files import sha256
from tlresearch.modality.decoding import read_pixels
from tlresearch.modality.image import Preprocessing, framed

Planes = list[tuple[str, Tensor, int]]
"""Class name, mask, bool ``(H, W)``, and mark (see `tlresearch.data.plane`) of each object of an image."""
Shape = tuple[str, Any, int]
"""Class name, ``segmentation`` and mark of an object of COCO."""


_LARGEST = 2**31  # bytes that the planes of one image may take


class Instances(Protocol):
    """Where the masks of an image's objects are read from."""

    def planes(self, index: int) -> Planes:
        """Returns the objects of an image.

        Raises:
            ValueError: If they cannot be read; the text says why.
        """
        ...

    def digest(self, index: int) -> str:
        """SHA-256 of what the masks are made from."""
        ...


class InstanceFiles:
    """One mask per image in which 0 is background and every other number an object, as of Penn-Fudan.

    Args:
        root: Folder the names are relative to.
        names: Mask of each image, relative to the root; ``None`` where there is none.
        label: Name of the only class.
    """

    def __init__(self, root: Path, names: Sequence[str | None], label: str) -> None:
        self.root = root
        self.names = names
        self.label = label

    def planes(self, index: int) -> Planes:
        """Returns the objects of an image."""
        name = self.names[index]
        if name is None:
            raise ValueError("there is no mask of its name")
        try:
            numbers = torch.from_numpy(read_pixels((self.root / name).read_bytes(), np.array).astype(np.int64))
        except (OSError, ValueError) as error:
            raise ValueError(f"its mask {name} cannot be read: {one_line(error, 200)}") from None
        if numbers.ndim != 2:
            raise ValueError(f"its mask {name} is coloured")
        each = torch.unique(numbers)
        if len(each) * numbers.numel() > _LARGEST:
            raise ValueError(f"its mask {name} has {len(each)} different numbers, which cannot all be objects")
        return [(self.label, numbers == number, 0) for number in each[each > 0]]

    def digest(self, index: int) -> str:
        """SHA-256 of the file."""
        name = self.names[index]
        return sha256(self.root / name) if name is not None else hashlib.sha256().hexdigest()


class CocoShapes:
    """Polygons and run lengths of COCO's JSON.

    Args:
        shapes: For each image its height, width, and objects.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, Sequence[Shape]]]) -> None:
        self.shapes = shapes

    def planes(self, index: int) -> Planes:
        """Returns the objects of an image; needs pycocotools."""
        try:
            from pycocotools import mask as coco
        except ImportError:
            raise MissingExtraError("pycocotools", "detection") from None
        height, width, objects = self.shapes[index]
        if min(height, width) < 1 or len(objects) * height * width > _LARGEST:
            raise ValueError(f"its annotation says that it is {width}x{height} with {len(objects)} masks")
        found = []
        for label, shape, mark in objects:
            if not shape:
                raise ValueError("an object without a segmentation; take the boxes alone (data.options.targets=boxes)")
            if not _is_drawable(shape, height, width):
                raise ValueError("an object's segmentation is neither polygons nor run lengths of the image's size")
            try:
                parts = coco.frPyObjects(shape, height, width) if not _is_coded(shape) else shape
                plane = coco.decode(coco.merge(parts) if isinstance(parts, list) else parts)
            except Exception as error:  # written in C: of a broken shape it raises whatever comes
                raise ValueError(f"an object's segmentation cannot be read: {one_line(error, 200)}") from None
            found.append((label, torch.from_numpy(plane.astype(bool)), mark))
        return found

    def digest(self, index: int) -> str:
        """SHA-256 of the shapes."""
        return hashlib.sha256(json.dumps(self.shapes[index]).encode()).hexdigest()


class InstanceTargets:
    """Masks of single objects, int16 ``(objects, H, W)``: 0 outside, class number + 1 inside.

    The values of a crowd are negative: what is found inside of it is neither right nor wrong.

    Args:
        instances: Objects of every image of the table.
        classes: Class names in the order of their numbers; objects of others are left out.
        sizes: Height and width of the images by row.
    """

    def __init__(self, instances: Instances, classes: Sequence[str], sizes: Mapping[int, tuple[int, int]]) -> None:
        self._instances = instances
        self._numbers = {name: number + 1 for number, name in enumerate(classes)}
        self._sizes = sizes

    def whole(self, row: int) -> Tensor:
        """Returns the objects of an image."""
        planes = [
            plane.to(torch.int16) * (-self._numbers[label] if mark else self._numbers[label])
            for label, plane, mark in self._instances.planes(row)
            if label in self._numbers
        ]
        return _seen(torch.stack(planes)) if planes else torch.zeros(0, *self._sizes[row], dtype=torch.int16)

    def framed(self, target: Tensor, wanted: Preprocessing, size: tuple[int, int]) -> Tensor:
        """Brings masks to the input size, without mixing neighbours."""
        if not len(target):  # nothing can be resized
            side = wanted.crop
            return target if side is None else target.new_zeros(0, side, side)
        fill = torch.zeros(len(target), dtype=target.dtype)
        return _seen(framed(target, wanted, InterpolationMode.NEAREST, antialias=False, fill=fill))

    def wrap(self, target: Tensor, size: tuple[int, int]) -> Any:
        """Returns masks, which torchvision samples by nearest neighbour."""
        return tv_tensors.Mask(target)

    def unwrap(self, moved: Any, target: Tensor) -> Tensor:
        """Returns plain masks without the objects that a crop has left outside."""
        return _seen(cast(Tensor, moved.as_subclass(Tensor)))


def _seen(planes: Tensor) -> Tensor:
    return planes[(planes != 0).flatten(1).any(dim=1)]


def _is_drawable(shape: Any, height: int, width: int) -> bool:
    """Whether a segmentation is safe to draw: pycocotools checks no number, and takes all memory for a wrong one."""
    if isinstance(shape, dict):
        counts = shape.get("counts")
        if shape.get("size") != [height, width]:
            return False
        if not isinstance(counts, list):
            return isinstance(counts, str)
        return all(type(run) is int and run >= 0 for run in counts) and sum(counts) == height * width
    bound = 10 * max(height, width)
    return isinstance(shape, list) and all(
        isinstance(ring, list) and all(type(at) in (int, float) and abs(at) <= bound for at in ring) for ring in shape
    )


def _is_coded(shape: Any) -> bool:
    """Whether a shape is compressed run lengths, which need no conversion."""
    return isinstance(shape, dict) and not isinstance(shape.get("counts"), list)
