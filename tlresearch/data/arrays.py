"""Images that lie in memory as one uint8 array."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tlresearch.data.table import Checked
from tlresearch.modality.decoding import to_channels


class ArrayImages:
    """Images of one size, kept as a tensor ``(samples, C, H, W)``.

    Args:
        array: uint8 array ``(samples, H, W)`` or ``(samples, H, W, C)``.
    """

    def __init__(self, array: np.ndarray) -> None:
        if array.dtype != np.uint8 or array.ndim not in (3, 4):
            raise ValueError(
                f"images must be uint8 (samples, height, width[, channels]) but got {array.dtype} {array.shape}"
            )
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        self.tensor = (tensor[:, None] if array.ndim == 3 else tensor.permute(0, 3, 1, 2)).contiguous()

    def load(self, index: int, channels: int) -> Tensor:
        """Returns one image as uint8 ``(channels, H, W)``."""
        return to_channels(self.tensor[index], channels).clone()

    def load_batch(self, indices: Sequence[int], channels: int) -> Tensor:
        """Returns many images at once as uint8 ``(batch, channels, H, W)``."""
        return to_channels(self.tensor[torch.as_tensor(indices, dtype=torch.int64)], channels)

    def check(self, indices: Sequence[int]) -> list[Checked]:
        """Hashes shape and pixels; an array cannot be unreadable."""
        _, channels, height, width = self.tensor.shape
        shape = f"{channels}x{height}x{width}:".encode()
        pixels = self.tensor.numpy()
        return [
            Checked(hashlib.sha256(shape + pixels[index].tobytes()).hexdigest(), height, width) for index in indices
        ]
