"""Grey and multi-channel images: the first convolution of pretrained weights for another number of channels."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import UserError
from tlresearch.modality.base import expect
from tlresearch.modality.image import Preprocessing


def adapt_channels(backbone: StagedBackbone, channels: int) -> None:
    """Makes a backbone take another number of input channels, in place.

    One channel: the first convolution's weights are summed over its inputs, so that a grey image gives what it would
    give repeated to three channels (up to the spread of the channels' statistics). More: they are repeated in turn
    and scaled by old / new, so that an image of equal channels gives the same response. Mean and spread of the
    preprocessing are averaged, or repeated in turn. This is timm's rule.

    Args:
        backbone: The backbone.
        channels: Channels of its new input.

    Raises:
        UserError: If its first layer on the input is no convolution over all channels.
    """
    complaint = UserError("backbone.in_channels: this backbone takes no images; leave it out")
    wanted = expect(backbone.preprocessing, Preprocessing, complaint)
    before = wanted.channels
    if channels == before:
        return
    convolution = next((layer for layer in backbone.stages[0].modules() if isinstance(layer, nn.Conv2d)), None)
    if convolution is None or convolution.in_channels != before or convolution.groups != 1:
        raise UserError(f"backbone.in_channels: the first layer is no convolution over {before} channels; leave it out")
    weight = convolution.weight.detach()
    turns = torch.arange(channels) % before
    new = weight.sum(dim=1, keepdim=True) if channels == 1 else weight[:, turns] * (before / channels)
    convolution.weight = nn.Parameter(new.clone())
    convolution.in_channels = channels
    for layer in backbone.stages[0].modules():
        if getattr(layer, "num_channels", None) == before:  # where transformers checks its images
            layer.num_channels = channels  # type: ignore[assignment]

    def spread(values: tuple[float, ...]) -> tuple[float, ...]:
        return (sum(values) / before,) if channels == 1 else tuple(values[turn] for turn in turns.tolist())

    backbone.preprocessing = replace(wanted, mean=spread(wanted.mean), std=spread(wanted.std))
