"""Answers about images as a person sees them: masks and boxes in a few words, and drawn over the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from tlresearch.serving.base import Shown
from tlresearch.tasks.detection_figures import SURE
from tlresearch.tasks.segmentation_figures import overlaid
from tlresearch.tasks.segmentation_figures import shown as three_channels

COLOURS = 20
"""Classes that have a colour of their own; further ones begin anew."""


def shown_shares(row: Mapping[str, Any], classes: Sequence[str]) -> Shown:
    """Says how much of an image each class covers, from the columns ``share(<class>)``."""
    shares = sorted(((row[f"share({name})"], name) for name in classes), reverse=True)
    return Shown(", ".join(f"{name} {share:.1%}" for share, name in shares if share >= 0.0005), None)


def shown_boxes(row: Mapping[str, Any]) -> Shown:
    """Counts the boxes with a score of at least one half by class; the probability is that of the least sure one."""
    sure = [(name, score) for name, score in zip(row["classes"], row["scores"], strict=True) if score >= SURE]
    counts = Counter(name for name, _ in sure)
    text = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return Shown(text or f"nothing (of {len(row['scores'])} boxes none has a score of {SURE})", _least(sure))


def mask_pictures(image: Tensor, mask: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, Image.Image]:
    """Draws a mask: by itself, and over its image where it has the image's size.

    Args:
        image: uint8 ``(C, H, W)``.
        mask: Class numbers by row.
        classes: Class names.

    Returns:
        ``mask``, whose pixels are class numbers with a palette to be looked at, and ``overlay``.
    """
    palette = colours(len(classes))
    numbers = np.array(mask, dtype=np.uint8)
    found = {"mask": _with_palette(numbers, palette)}
    if numbers.shape == tuple(image.shape[-2:]):
        found["overlay"] = Image.fromarray(overlaid(three_channels(image), numbers, palette))
    return found


def box_pictures(image: Tensor, row: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Image.Image]:
    """Draws the boxes with a score of at least one half, with class and score, into an image ``(C, H, W)``.

    Where the answer has a mask of each object, it is laid over the image too.

    Returns:
        ``overlay``, and, with masks, ``mask``, whose pixels are the numbers of the objects.
    """
    sure = [number for number, score in enumerate(row["scores"]) if score >= SURE]
    canvas = torch.from_numpy(np.ascontiguousarray(three_channels(image).transpose(2, 0, 1)))
    if sure:
        palette = [tuple(round(255 * part) for part in colour) for colour in colours(len(classes))]
        if "mask" in row:
            planes = torch.tensor(row["mask"]) == torch.tensor(sure)[:, None, None] + 1
            own = [palette[classes.index(row["classes"][number])] for number in sure]
            canvas = draw_segmentation_masks(canvas, planes, alpha=0.4, colors=own)
        canvas = draw_bounding_boxes(
            canvas,
            torch.tensor([row["boxes"][number] for number in sure], dtype=torch.float32),
            labels=[f"{row['classes'][number]} {row['scores'][number]:.2f}" for number in sure],
            colors=[palette[classes.index(row["classes"][number])] for number in sure],
            width=max(1, min(canvas.shape[-2:]) // 200),
        )
    found = {"overlay": to_pil_image(canvas)}
    if "mask" in row:  # 255 objects at most: no detector answers with more
        several = [(0.0, 0.0, 0.0), *colours(COLOURS) * 13]
        found["mask"] = _with_palette(np.array(row["mask"], dtype=np.uint8), several[:256])
    return found


def colours(count: int) -> list[tuple[float, ...]]:
    """A colour for each class, red, green and blue in 0 to 1; those of the figures of a run."""
    from matplotlib import colormaps

    names = colormaps["tab10" if count <= 10 else "tab20"]
    return [tuple(names(number % COLOURS)[:3]) for number in range(count)]


def _with_palette(numbers: np.ndarray, palette: Sequence[Sequence[float]]) -> Image.Image:
    """A picture whose pixels are numbers, and which is shown in colours."""
    picture = Image.fromarray(numbers, mode="P")
    picture.putpalette([round(255 * part) for colour in palette for part in colour])
    return picture


def _least(sure: Sequence[tuple[str, float]]) -> float | None:
    return min((score for _, score in sure), default=None)
