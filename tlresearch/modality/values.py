"""Values: the inputs of a backbone and what crosses the boundaries between its stages, for a sample or a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

Value = Tensor | dict[str, Tensor]
"""A tensor, or named tensors. In a batch, the first dimension of each tensor is the batch.

In a dict, ``"mask"`` (bool, ``(batch, length)``) is true at real positions. Any other leaf whose second dimension is
``length`` is a padded sequence; the remaining leaves have fixed shapes.
"""

SINGLE = "value"  # the leaf name of a value that is a single tensor


def leaves(value: Value) -> dict[str, Tensor]:
    """Returns the tensors of a value by name; the name of a single tensor is ``"value"``."""
    return value if isinstance(value, dict) else {SINGLE: value}


def from_leaves(named: Mapping[str, Tensor]) -> Value:
    """Makes a value of its leaves; the inverse of `leaves`."""
    return named[SINGLE] if set(named) == {SINGLE} else dict(named)


def stack(samples: Sequence[Value]) -> Value:
    """Stacks samples into a batch; tensors of different sizes are padded with zeros at their ends.

    Args:
        samples: Values without a batch dimension, all with the same leaves.
    """
    if isinstance(samples[0], Tensor):
        return _stack(cast(Sequence[Tensor], samples))
    return {name: _stack([cast(dict[str, Tensor], sample)[name] for sample in samples]) for name in samples[0]}


def unstack(batch: Value) -> list[Value]:
    """Splits a batch into samples, and removes the padding of sequences, which the mask marks."""
    if isinstance(batch, Tensor):
        return list(batch)
    mask = batch.get("mask")
    if mask is None:
        return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    # A sequence ends with its last real position; masked positions in front of that stay.
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths = (mask * positions).amax(dim=1).tolist() if mask.shape[1] else [0] * len(mask)
    sequences = {name for name, leaf in batch.items() if leaf.ndim > 1 and leaf.shape[1] == mask.shape[1]}
    return [
        {name: leaf[row, :length] if name in sequences else leaf[row] for name, leaf in batch.items()}
        for row, length in enumerate(lengths)
    ]


def to_device(part: Any, device: torch.device) -> Any:
    """Moves tensors to a device, also within dicts, lists and tuples; anything else stays as it is."""
    if isinstance(part, Tensor):
        return part.to(device, non_blocking=True)
    if isinstance(part, dict):
        return {key: to_device(value, device) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        moved = [to_device(value, device) for value in part]
        return part._make(moved) if hasattr(part, "_make") else type(part)(moved)  # a named tuple takes no sequence
    return part


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    if all(tensor.shape == tensors[0].shape for tensor in tensors):
        return torch.stack(list(tensors))
    sizes = [max(extent) for extent in zip(*(tensor.shape for tensor in tensors), strict=True)]
    return torch.stack([_pad(tensor, sizes) for tensor in tensors])


def _pad(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - extent for size, extent in zip(sizes, tensor.shape, strict=True)]
    # `functional.pad` takes a pair (front, end) for each dimension, the last dimension first.
    return functional.pad(tensor, [amount for end in reversed(missing) for amount in (0, end)])
