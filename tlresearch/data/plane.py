"""Targets in the image plane: masks of classes, and boxes, which move with their image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchvision import tv_tensors

from tlresearch.data.mask_files import Pairs
from tlresearch.data.table import Size
from tlresearch.modality.image import Preprocessing, framed_boxes, framed_mask

DIFFICULT = 1
"""Mark of an object that is hard even for people: finding it is neither right nor wrong, nor is missing it."""
CROWD = 2
"""Mark of a region of many objects: whatever is found inside of it is neither right nor wrong."""
_SMALLEST = 0.01  # a box that a random crop leaves with a shorter side than this share of the input's is dropped


class MaskTargets:
    """Masks of class numbers, uint8 ``(H, W)``.

    Args:
        pairs: Images with their masks.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def whole(self, row: int) -> Tensor:
        """Returns a mask; see `Pairs.mask`."""
        return self._pairs.mask(row)

    def framed(self, target: Tensor, wanted: Preprocessing, size: Size) -> Tensor:
        """Brings a mask to the input size, without mixing neighbours."""
        return framed_mask(target, wanted)

    def wrap(self, target: Tensor, size: Size) -> Any:
        """Returns a mask, which torchvision samples by nearest neighbour."""
        return tv_tensors.Mask(target)

    def unwrap(self, moved: Any, target: Tensor) -> Tensor:
        """Returns the plain tensor."""
        return cast(Tensor, moved.as_subclass(Tensor))


class BoxTargets:
    """Boxes with their class, float32 ``(n, 5)``: x0, y0, x1, y1 in pixels, class number.

    Where the source marks objects that are neither right nor wrong, a sixth column holds the mark of each box: 0,
    `DIFFICULT` or `CROWD`.

    Args:
        boxes: Boxes of every image of the table.
    """

    def __init__(self, boxes: Sequence[Tensor]) -> None:
        self._boxes = boxes

    def whole(self, row: int) -> Tensor:
        """Returns the boxes of an image."""
        return self._boxes[row]

    def framed(self, target: Tensor, wanted: Preprocessing, size: Size) -> Tensor:
        """Scales boxes with their image."""
        return framed_boxes(target, wanted, *size)

    def wrap(self, target: Tensor, size: Size) -> Any:
        """Returns bounding boxes, which torchvision clips to the image."""
        return tv_tensors.BoundingBoxes(target[:, :4], format="XYXY", canvas_size=size)

    def unwrap(self, moved: Any, target: Tensor) -> Tensor:
        """Adds classes and marks, and drops what is left of boxes that lay outside of a crop."""
        boxes = moved.as_subclass(Tensor)
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = (sides >= _SMALLEST * max(moved.canvas_size)).all(dim=1)
        return torch.cat([boxes, target[:, 4:]], dim=1)[kept]
