"""What the stages of a backbone are: sizes and shapes for tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tlresearch.backbones.base import StagedBackbone, evaluating
from tlresearch.data.values import Value, leaves, stack, to_device


@dataclass(frozen=True)
class StageRow:
    """One stage.

    Attributes:
        name: Name.
        parameters: Number of values in its parameters.
        buffers: Number of values in its buffers.
        output_shape: Shape of its output for one sample, without the batch; of several tensors, the largest one's.
        depth: Smallest unfreeze depth at which it is trained.
    """

    name: str
    parameters: int
    buffers: int
    output_shape: tuple[int, ...]
    depth: int


def describe_stages(backbone: StagedBackbone, example: Value) -> list[StageRow]:
    """Returns one row per stage, found by running one sample through the backbone.

    Args:
        backbone: The backbone; it is left as it was.
        example: One input without the batch dimension, such as a tensor ``(3, 224, 224)``.
    """
    like = next(backbone.parameters(), torch.empty(0))
    rows = []
    with torch.no_grad(), evaluating(backbone):
        x = to_device(stack([example]), like.device)
        for index, (name, stage) in enumerate(backbone.named_stages()):
            before = {id(leaf) for leaf in leaves(x).values()}
            x = backbone.step(index, stage, x)
            made = [leaf for leaf in leaves(x).values() if id(leaf) not in before]  # maps may be carried along
            rows.append(
                StageRow(
                    name=name,
                    parameters=sum(parameter.numel() for parameter in stage.parameters()),
                    buffers=sum(buffer.numel() for buffer in stage.buffers()),
                    output_shape=tuple(max(made, key=torch.numel).shape[1:]),
                    depth=len(backbone.stage_names) - index,
                )
            )
    return rows
