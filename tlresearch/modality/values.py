"""Values: what goes into a backbone and crosses the boundaries between its stages, for one sample or a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

Value = Tensor | dict[str, Tensor]
"""A tensor, or named tensors. In a batch, the first dimension of each is the batch.

In a dict, ``"mask"`` (bool, ``(batch, length)``, true where there is something) says which positions are real: every
other leaf whose second dimension is ``length`` is a sequence that was padded. Leaves without it have fixed shapes.
"""

SINGLE = "value"  # the name of a tensor that is a value by itself


def leaves(value: Value) -> dict[str, Tensor]:
    """Returns a value's tensors by name; one that is a tensor itself is called ``"value"``."""
    return value if isinstance(value, dict) else {SINGLE: value}


def from_leaves(named: Mapping[str, Tensor]) -> Value:
    """Puts back together what `leaves` took apart."""
    return named[SINGLE] if set(named) == {SINGLE} else dict(named)


def stack(samples: Sequence[Value]) -> Value:
    """Stacks samples to a batch; tensors of unequal size are padded with zeros at their ends.

    Args:
        samples: Values without a batch dimension, all with the same leaves.
    """
    if isinstance(samples[0], Tensor):
        return _stack(cast(Sequence[Tensor], samples))
    return {name: _stack([cast(dict[str, Tensor], sample)[name] for sample in samples]) for name in samples[0]}


def unstack(batch: Value) -> list[Value]:
    """Takes a batch apart; sequences lose the padding that the mask leaves out."""
    if isinstance(batch, Tensor):
        return list(batch)
    mask = batch.get("mask")
    if mask is None:
        return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    # Up to the last real position, wherever the padding lies in between.
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths = (mask * positions).amax(dim=1).tolist() if mask.shape[1] else [0] * len(mask)
    sequences = {name for name, leaf in batch.items() if leaf.ndim > 1 and leaf.shape[1] == mask.shape[1]}
    return [
        {name: leaf[row, :length] if name in sequences else leaf[row] for name, leaf in batch.items()}
        for row, length in enumerate(lengths)
    ]


def to_device(part: Any, device: torch.device) -> Any:
    """Moves tensors, wherever they are in dicts, lists and tuples, to a device; the rest stays as it is."""
    if isinstance(part, Tensor):
        return part.to(device, non_blocking=True)
    if isinstance(part, dict):
        return {key: to_device(value, device) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        moved = [to_device(value, device) for value in part]
        return part._make(moved) if hasattr(part, "_make") else type(part)(moved)
    return part


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    if all(tensor.shape == tensors[0].shape for tensor in tensors):
        return torch.stack(list(tensors))
    sizes = [max(extent) for extent in zip(*(tensor.shape for tensor in tensors), strict=True)]
    return torch.stack([_pad(tensor, sizes) for tensor in tensors])


def _pad(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - have for size, have in zip(sizes, tensor.shape, strict=True)]
    return functional.pad(tensor, [extent for pair in ((0, m) for m in reversed(missing)) for extent in pair])
