"""The small convolutional network of Keras's MNIST transfer example, as a staged backbone without published weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tlresearch.backbones.base import StagedBackbone, WeightsRecord
from tlresearch.backbones.cutting import Granularity
from tlresearch.backbones.weights import load_stages, locate
from tlresearch.base.errors import UserError, WeightsError
from tlresearch.modality.image import Preprocessing


def build_mnist_cnn(
    model: str = "mnist_cnn",
    *,
    weights: str | None = None,
    weights_sha256: str | None = None,
    weights_prefix: str | None = None,
    granularity: Granularity = "stage",
    options: Mapping[str, Any] | None = None,
) -> StagedBackbone:
    """Builds two convolutions with max pooling, then a dense layer of 128, for grey images of 28x28 pixels.

    Source: ``examples/mnist_transfer_cnn.py`` of keras-team/keras at commit 10bfb1c5: its feature layers are the
    stage `features`, its first dense layer with dropout the stage `dense`. Weights start as in Keras: Glorot uniform,
    biases 0.

    Args:
        model: Its name; there is only one.
        weights: ``None`` for random weights, a file, or a URL.
        weights_sha256: SHA-256 of the weights file; required for a URL.
        weights_prefix: What stands in front of the tensors' names in the file; by default it is found.
        granularity: Of no effect; there are two stages.
        options: There are none.

    Raises:
        WeightsError: If the weights cannot be had or do not fit.
        UserError: If an option is given.
    """
    if options:
        raise UserError(f"backbone.options: {model} has no options, but got '{next(iter(options))}'")
    if weights == "default":
        raise WeightsError(f"backbone.weights: there are no pretrained weights of {model}; use null or a file")
    stages: dict[str, nn.Module] = {
        "features": nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 32, 3),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(32, 32, 3),
                relu2=nn.ReLU(),
                pool=nn.MaxPool2d(2),
                dropout1=nn.Dropout(0.25),
                flatten=nn.Flatten(),
            )
        ),
        "dense": nn.Sequential(
            OrderedDict(fc1=nn.Linear(32 * 12 * 12, 128), relu3=nn.ReLU(), dropout2=nn.Dropout(0.5)),
        ),
    }
    for stage in stages.values():
        stage.apply(_as_keras)
    record = WeightsRecord(random_stages=tuple(stages))
    if weights is not None:
        record = load_stages(stages, locate(weights, weights_sha256), prefix=weights_prefix)
    # Pixels in [0, 1], neither centred nor scaled.
    preprocessing = Preprocessing(crop=28, resize=28, mean=(0.0,), std=(1.0,))
    return StagedBackbone(stages, out_features=128, preprocessing=preprocessing, weights=record)


@torch.no_grad()
def _as_keras(layer: nn.Module) -> None:
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
