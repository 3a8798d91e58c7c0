"""What backbones of sequences share: masks, and the mean of the hidden states."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_of(lengths: Tensor, longest: int) -> Tensor:
    """Returns a mask ``(batch, longest)``, true for the first ``lengths[i]`` positions of row i."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def mean_of(hidden: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean ``(batch, width)`` of the hidden states ``(batch, length, width)`` that the mask leaves."""
    # Replaced, not multiplied: padding may hold anything where a layer before has not looked at the mask.
    total = hidden.masked_fill(~mask[..., None], 0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)
