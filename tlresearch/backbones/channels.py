"""Channels: pretrained weights for another number of them at the input, and the axis they lie on between stages."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tlresearch.backbones.base import StagedBackbone, evaluating
from tlresearch.backbones.log_mel import LogMelImage
from tlresearch.base.errors import UserError
from tlresearch.modality.base import expect
from tlresearch.modality.image import Preprocessing
from tlresearch.modality.values import leaves


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
    for stage in backbone.stages:
        for layer in stage.modules():
            if getattr(layer, "num_channels", None) == before:  # where transformers checks its images
                layer.num_channels = channels  # type: ignore[assignment]
        twin = next((layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)), None)
        if twin is not None and "weight" in vars(twin) and twin.in_channels == before:
            # A stage cut by structure has all modules of its network: of this one, the sizes without the weights.
            twin.in_channels = channels
            twin.__dict__["weight"] = new.new_zeros(()).expand(new.shape)

    def spread(values: tuple[float, ...]) -> tuple[float, ...]:
        return (sum(values) / before,) if channels == 1 else tuple(values[turn] for turn in turns.tolist())

    backbone.preprocessing = replace(wanted, mean=spread(wanted.mean), std=spread(wanted.std))


def channel_axis(shape: Sequence[int], larger: Sequence[int] | None, before: int = 1) -> int:
    """Finds the axis of the channels in a map: the only one that stays when the image gets larger.

    Args:
        shape: The map of a square image, ``(batch, C, H, W)`` or ``(batch, H, W, C)``.
        larger: The map of a larger square image; ``None`` where the network takes images of one size only. Then the
            channels are on the axis beside the two that are equal.
        before: The axis in the stage in front of this one, which is taken if neither tells.
    """
    if larger is not None:
        staying = [axis for axis in (1, 2, 3) if shape[axis] == larger[axis]]
        if len(staying) == 1:
            return staying[0]
    if shape[2] == shape[3] != shape[1]:
        return 1
    return 3 if shape[1] == shape[2] != shape[3] else before


def channel_axes(backbone: StagedBackbone) -> tuple[dict[str, int], ...]:
    """Finds the axis of the channels in the maps that an image backbone, or one behind a spectrogram, passes on.

    It cannot be told from a map of a wide image or a spectrogram, so the stages are run on square images of two sizes.

    Returns:
        For each stage, the axis by the name of the tensor in its output (see `leaves`); only of tensors of four axes.
    """
    first, channels, side = 0, 3, 64
    if isinstance(backbone.preprocessing, Preprocessing):
        channels, side = backbone.preprocessing.channels, backbone.preprocessing.crop or side
    elif isinstance(backbone.stages[0], LogMelImage):
        first, channels, side = 1, backbone.stages[0].channels, backbone.stages[0].side or side
    else:
        return ({},) * len(backbone.stages)
    small = _shapes(backbone, first, channels, side, fake=True)
    if first + len(small) < len(backbone.stages):  # what looks at values takes no fake ones
        small = _shapes(backbone, first, channels, side, fake=False)
    large = _shapes(backbone, first, channels, 2 * side, fake=True)
    axes: list[dict[str, int]] = [{}] * first
    for number, shapes in enumerate(small):
        larger = large[number] if number < len(large) else {}
        before = next(iter(axes[-1].values()), 1) if axes else 1
        axes.append(
            {name: channel_axis(shape, larger.get(name), before) for name, shape in shapes.items() if len(shape) == 4}
        )
    return tuple(axes + [{}] * (len(backbone.stages) - len(axes)))


def _shapes(
    backbone: StagedBackbone, first: int, channels: int, side: int, *, fake: bool
) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of what the stages pass on of a square image, by name, up to the first stage that does not take it."""
    shapes = []
    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()
    with torch.no_grad(), mode, evaluating(backbone):
        value: Any = torch.zeros(1, channels, side, side, device=device)
        for number in range(first, len(backbone.stages)):
            try:
                value = backbone(value, number, number + 1)
            except Exception:  # whatever a network that takes one size, or looks at values, raises
                break
            shapes.append({name: tuple(leaf.shape) for name, leaf in leaves(value).items()})
    return shapes
