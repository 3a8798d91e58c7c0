"""What the stages of a backbone are: sizes and shapes for tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tlresearch.backbones.base import StagedBackbone, evaluating


@dataclass(frozen=True)
class StageRow:
    """One stage.

    Attributes:
        name: Name.
        parameters: Number of values in its parameters.
        buffers: Number of values in its buffers.
        output_shape: Shape of its output for one sample, without the batch dimension.
        depth: Smallest unfreeze depth at which it is trained.
    """

    name: str
    parameters: int
    buffers: int
    output_shape: tuple[int, ...]
    depth: int


def describe_stages(backbone: StagedBackbone, input_shape: Sequence[int]) -> list[StageRow]:
    """Returns one row per stage, found by running one sample through the backbone.

    Args:
        backbone: The backbone; it is left as it was.
        input_shape: Shape of one input without the batch dimension, such as ``(3, 224, 224)``.
    """
    like = next(backbone.parameters(), torch.empty(0))
    rows = []
    with torch.no_grad(), evaluating(backbone):
        x = torch.zeros(1, *input_shape, device=like.device, dtype=like.dtype)
        for index, (name, stage) in enumerate(backbone.named_stages()):
            x = stage(x)
            rows.append(
                StageRow(
                    name=name,
                    parameters=sum(parameter.numel() for parameter in stage.parameters()),
                    buffers=sum(buffer.numel() for buffer in stage.buffers()),
                    output_shape=tuple(x.shape[1:]),
                    depth=len(backbone.stage_names) - index,
                )
            )
    return rows
