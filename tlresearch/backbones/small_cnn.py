"""A small convolutional backbone for small images, without published weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn

from tlresearch.backbones.base import StagedBackbone, WeightsRecord
from tlresearch.backbones.cutting import Granularity
from tlresearch.backbones.weights import load_stages, locate
from tlresearch.base.errors import UserError, WeightsError
from tlresearch.modality.image import Preprocessing


def build_small_cnn(
    model: str = "small_cnn",
    *,
    weights: str | None = None,
    weights_sha256: str | None = None,
    weights_prefix: str | None = None,
    granularity: Granularity = "stage",
    options: Mapping[str, Any] | None = None,
) -> StagedBackbone:
    """Builds four stages of convolution, batch norm and ReLU for images of 8 to 64 pixels.

    Args:
        model: Its name; there is only one.
        weights: ``None`` for random weights, a file, or a URL.
        weights_sha256: SHA-256 of the weights file; required for a URL.
        weights_prefix: What stands in front of the tensors' names in the file; by default it is found.
        granularity: Of no effect; a stage is a single block.
        options: ``width``, the number of channels of the first stage (16), and ``in_channels`` (3).

    Raises:
        WeightsError: If the weights cannot be had or do not fit.
        UserError: If an option is unknown or out of range.
    """
    given = dict(options or {})
    width = given.pop("width", 16)
    in_channels = given.pop("in_channels", 3)
    if given:
        raise UserError(f"backbone.options: {model} has no option '{next(iter(given))}'; it has width and in_channels")
    if not isinstance(width, int) or width < 1:
        raise UserError(f"backbone.options.width must be a whole number of at least 1 but got {width!r}")
    if weights == "default":
        raise WeightsError(f"backbone.weights: there are no pretrained weights of {model}; use null or a file")
    stages = _stages(in_channels, (width, 2 * width, 4 * width, 4 * width))
    record = WeightsRecord(random_stages=tuple(stages))
    if weights is not None:
        record = load_stages(stages, locate(weights, weights_sha256), prefix=weights_prefix)
    halves = (0.5,) * in_channels
    return StagedBackbone(
        stages,
        out_features=4 * width,
        preprocessing=Preprocessing(crop=None, resize=None, mean=halves, std=halves),
        weights=record,
    )


def _stages(in_channels: int, widths: tuple[int, ...]) -> dict[str, nn.Module]:
    stages: dict[str, nn.Module] = {}
    for number, (before, width) in enumerate(zip((in_channels, *widths), widths, strict=False), start=1):
        # The number in each layer's name keeps the names of the whole network apart.
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers[f"conv{number}"] = nn.Conv2d(before, width, 3, padding=1, bias=False)
        layers[f"bn{number}"] = nn.BatchNorm2d(width)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        if number < len(widths):
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        else:
            layers["pool"] = nn.AdaptiveAvgPool2d(1)
            layers["flatten"] = nn.Flatten()
        stages[f"block{number}"] = nn.Sequential(layers)
    return stages
