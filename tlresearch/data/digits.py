"""Source `digits`: scikit-learn's 1797 handwritten digits, 8x8 pixels, which need no download."""

from __future__ import annotations

import numpy as np
import torch

from tlresearch.data.arrays import ArrayImages
from tlresearch.data.table import Table


def read_digits() -> Table:
    """Returns the digits with their 17 grey levels spread over 0 to 255; they have no given split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Table(
        name="digits",
        classes=tuple(str(digit) for digit in range(10)),
        labels=torch.from_numpy(digits.target.astype(np.int64)),
        names=[f"digits/{index:04d}" for index in range(len(images))],
        images=ArrayImages(images),
    )
