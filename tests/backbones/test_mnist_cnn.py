"""The network of Keras's MNIST transfer example."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.mnist_cnn import build_mnist_cnn
from tlresearch.base.errors import UserError, WeightsError
from tlresearch.config.schema import BackboneConfig


def test_it_is_the_network_of_the_example() -> None:
    backbone = build_backbone(BackboneConfig(name="mnist_cnn", weights=None))
    assert backbone.stage_names == ("features", "dense")
    assert backbone(torch.zeros(2, 1, 28, 28)).shape == (2, 128)
    # Keras prints 600,165 parameters for the whole model; its last layer of 5 outputs has 645 of them.
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 600_165 - 645
    state = backbone.original_state_dict()
    assert not state["fc1.bias"].any()
    limit = (6 / (32 * 12 * 12 + 128)) ** 0.5  # Glorot uniform
    assert 0.99 * limit < state["fc1.weight"].abs().max() <= limit


def test_a_file_is_loaded(tmp_path: Path) -> None:
    torch.save(build_mnist_cnn().original_state_dict(), tmp_path / "w.pth")
    assert build_mnist_cnn(weights=str(tmp_path / "w.pth")).weights.random_stages == ()


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="has no options, but got 'width'"):
        build_mnist_cnn(options={"width": 4})
    with pytest.raises(WeightsError, match="no pretrained weights"):
        build_mnist_cnn(weights="default")
