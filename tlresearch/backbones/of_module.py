"""Any nn.Module of images as a backbone of an experiment."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from tlresearch.backbones.base import StagedBackbone, WeightsRecord
from tlresearch.backbones.cutting import Granularity
from tlresearch.backbones.stages import Vector, divide, report
from tlresearch.base.errors import UserError
from tlresearch.modality.image import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, which nearly every network of images has seen."""
SIDE = 224


def of_module(network: nn.Module, name: str, *, side: int | None, granularity: Granularity) -> StagedBackbone:
    """Takes a network of images apart, without its head; see `tlresearch.stages`.

    Every stage counts as not loaded: only the network's own code knows what its weights are, so a run keeps them all.

    Args:
        network: Takes ``(batch, channels, side, side)`` and gives features.
        name: Its dotted path.
        side: Side of its images in pixels; ``None`` is 224.
        granularity: Coarse stages, or single blocks.

    Raises:
        UserError: If it does not run on such images.
    """
    side = side or SIDE
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 3
    try:
        division = divide(network, Vector(), torch.zeros(1, channels, side, side), granularity=granularity)
    except (UserError, RuntimeError, ValueError) as error:
        raise UserError(
            f"backbone.name: {name} does not run on images ({channels}, {side}, {side}): {error}; set backbone.side"
        ) from error
    report(name, division)
    width: Any = division.result
    grey = (0.5,) * channels
    return StagedBackbone(
        division.stages,
        out_features=int(width.shape[-1]),
        preprocessing=Preprocessing(
            crop=side, resize=side, mean=MEAN if channels == 3 else grey, std=STD if channels == 3 else grey
        ),
        weights=WeightsRecord(name, _digest(network), tuple(division.stages)),
        way=division.way,
        reasons=division.reasons,
    )


def _digest(network: nn.Module) -> str:
    """SHA-256 of all weights and statistics."""
    whole = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        whole.update(name.encode())
        whole.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()
