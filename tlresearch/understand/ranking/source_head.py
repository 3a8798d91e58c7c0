"""The head that a backbone was pretrained with: what its source classes say of the target's samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.vision import AUXILIARY, download_published, find_published
from tlresearch.backbones.weights import locate, read, under
from tlresearch.base.errors import UserError
from tlresearch.config.schema import BackboneConfig
from tlresearch.understand.ranking.scores import Floats


def source_probabilities(config: BackboneConfig, backbone: StagedBackbone, features: Floats) -> Floats | None:
    """Returns the probabilities of the source classes ``(n, c)``, from the head in the weights file.

    The head is the linear layer that takes the backbone's output and is in the file but not in the backbone. A head
    that is a 1x1 convolution (SqueezeNet) is applied to the averaged activations; the network itself applies it, and
    the ReLU behind it, before it averages.

    Args:
        config: The `backbone` section.
        backbone: The backbone.
        features: Its output ``(n, d)``.

    Returns:
        ``None`` where the head is not known: random weights, an earlier run's, or a file without one.
    """
    head = find_head(config, backbone)
    if head is None:
        return None
    weight, bias = head
    logits = torch.from_numpy(np.asarray(features, dtype=np.float64)) @ weight.double().T + bias.double()
    found: Floats = logits.softmax(dim=1).numpy()
    return found


def find_head(config: BackboneConfig, backbone: StagedBackbone) -> tuple[Tensor, Tensor] | None:
    """Returns weight ``(c, d)`` and bias ``(c,)`` of the source head; ``None`` where there is none."""
    file = _weights_file(config)
    if file is None:
        return None
    tensors = under(read(file), backbone.weights.prefix)
    own = backbone.original_state_dict().keys()
    for name in reversed([name for name in tensors if name.endswith("weight")]):
        weight, bias = tensors[name], tensors.get(f"{name.removesuffix('weight')}bias")
        linear = weight.ndim == 2 or (weight.ndim == 4 and weight.shape[2:] == (1, 1))
        if name in own or bias is None or not linear or name.startswith(AUXILIARY):
            continue
        if weight.shape[1] == backbone.out_features:
            return weight.flatten(1), bias
    return None


def _weights_file(config: BackboneConfig) -> Path | None:
    if config.weights is None or config.checkpoint is not None:
        return None
    family, _, model = config.name.partition("/")
    published = find_published(model, config.weights) if family == "torchvision" else None
    if published is not None:
        return download_published(published, config.weights_sha256)
    try:
        return locate(config.weights, config.weights_sha256)
    except UserError:
        return None
