"""What the stages of a backbone are: sizes and shapes for tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tlresearch.backbones.base import StagedBackbone, evaluating, unchanged
from tlresearch.base.errors import UserError, first_line
from tlresearch.modality.image import Preprocessing
from tlresearch.modality.values import Value, leaves, stack, to_device


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


def check_size(backbone: StagedBackbone, preprocessing: Any) -> None:
    """Runs one image of the size that training will have through the backbone, if that is not its own size.

    Args:
        backbone: The backbone; it is left as it was.
        preprocessing: What the data gives; nothing but images is looked at.

    Raises:
        UserError: If the backbone takes no images of this size.
    """
    own = backbone.preprocessing
    if not isinstance(preprocessing, Preprocessing) or not isinstance(own, Preprocessing):
        return
    if preprocessing.crop is None or preprocessing.crop == own.crop:
        return
    device = next(backbone.parameters(), torch.empty(0)).device
    try:
        with torch.no_grad(), unchanged(backbone), evaluating(backbone):
            backbone(to_device(stack([preprocessing.example()]), device))
    except Exception as error:  # a foreign network may raise anything
        raise UserError(
            f"data.image_size: the backbone takes no images of {preprocessing.crop} pixels ({first_line(error, 200)}); "
            f"its own size is {own.crop}; some networks are built for another one by backbone.options.img_size (timm) "
            "or backbone.options.image_size"
        ) from None
