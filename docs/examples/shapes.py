"""A data source of one's own: a function that returns a `Table`."""

from __future__ import annotations

import numpy as np
import torch

from tlresearch.data.arrays import ArrayImages
from tlresearch.data.table import Table

CLASSES = ("cross", "square")


def shapes(samples: int = 200, side: int = 16, seed: int = 0) -> Table:
    """Draws crosses and squares at random places; the arguments come from `data.options`.

    Args:
        samples: Number of images.
        side: Side of an image in pixels.
        seed: Seed of places and noise.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(samples) % len(CLASSES)
    images = generator.integers(0, 60, size=(samples, side, side), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = generator.integers(0, side - 7, size=2)
        patch = image[top : top + 7, left : left + 7]
        if CLASSES[label] == "cross":
            patch[3, :], patch[:, 3] = 255, 255
        else:
            patch[[0, -1], :], patch[:, [0, -1]] = 255, 255
    return Table(
        name="shapes",
        classes=CLASSES,
        labels=torch.from_numpy(labels.astype(np.int64)),
        names=[f"shapes/{index:04d}" for index in range(samples)],
        images=ArrayImages(images),
    )
