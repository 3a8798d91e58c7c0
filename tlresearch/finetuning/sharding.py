"""Tensors of which each rank holds a part: whole ones made of them, and parts of whole ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Any) -> Any:
    """Returns a sharded tensor as a whole one; the work of all ranks together. Anything else is returned as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def placed_like(value: Tensor, other: Tensor | None) -> Tensor:
    """Returns a tensor sharded as another one is; the work of all ranks together, each of which has the whole."""
    if isinstance(other, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value, other.device_mesh, other.placements)
    return value
