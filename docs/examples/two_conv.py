"""A backbone of one's own: a function that returns a `StagedBackbone`."""

from __future__ import annotations

from torch import nn

from tlresearch.backbones.base import StagedBackbone, WeightsRecord
from tlresearch.backbones.weights import load_stages, locate
from tlresearch.modality.image import Preprocessing


def two_conv(width: int = 8, file: str | None = None) -> StagedBackbone:
    """Builds two stages of convolution, norm and ReLU; the arguments come from `backbone.options`.

    Args:
        width: Channels of the first stage.
        file: Weights to start from, a state dict with the names below; random weights unless given.
    """
    # Running the stages one after another is the whole network without its head.
    # Layers are named apart (conv1, conv2), so that the state dict of the whole network has each name once.
    stages = {
        "first": nn.Sequential(),
        "second": nn.Sequential(),
    }
    for number, (stage, channels) in enumerate(zip(stages.values(), ((1, width), (width, 2 * width)), strict=True), 1):
        stage.add_module(f"conv{number}", nn.Conv2d(*channels, 3, padding=1, bias=False))
        stage.add_module(f"norm{number}", nn.BatchNorm2d(channels[1]))
        stage.add_module(f"relu{number}", nn.ReLU())
    stages["first"].add_module("pool1", nn.MaxPool2d(2))
    stages["second"].add_module("pool2", nn.AdaptiveAvgPool2d(1))
    stages["second"].add_module("flatten", nn.Flatten())
    # Stages that are not loaded are named, so that they are kept with the run even where they stay frozen.
    record = load_stages(stages, locate(file, None)) if file else WeightsRecord(random_stages=tuple(stages))
    return StagedBackbone(
        stages,
        out_features=2 * width,
        preprocessing=Preprocessing(crop=None, resize=None, mean=(0.5,), std=(0.5,)),
        weights=record,
    )
