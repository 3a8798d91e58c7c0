"""Sharded tensors, of which each rank holds a part: making them whole, and sharding whole tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(value: Any) -> Any:
    """Gathers a sharded tensor, which all ranks must do together. Anything else is returned as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def placed_like(value: Tensor, model: Tensor | None) -> Tensor:
    """Shards a tensor, which every rank has whole, like another tensor; all ranks must do so together."""
    if isinstance(model, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value, model.device_mesh, model.placements)
    return value
