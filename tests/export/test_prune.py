"""A pruned head keeps its strongest features, and the layer that makes them is cut if nothing else needs the rest."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import UserError
from tlresearch.config.schema import BackboneConfig
from tlresearch.export.prune import prune_head
from tlresearch.serving.base import linear_head


def network(name: str, **options: int) -> nn.Sequential:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name=name, weights=None, options=options))
    return nn.Sequential(backbone, linear_head(backbone.out_features, 3)).eval()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("small_cnn", {"in_channels": 3, "width": 4}, "conv4"),
        ("torchvision/mobilenet_v2", {}, "features.18.0"),
        ("torchvision/resnet18", {}, ""),  # a connection goes past its last layer
    ],
)
def test_it_answers_as_with_the_weakest_features_set_to_zero(name: str, options: dict[str, int], layer: str) -> None:
    whole = network(name, **options)
    linear = whole[1][1]  # type: ignore[index]
    before = linear.weight.detach().clone()
    pruned, told = prune_head(whole, 0.5)
    assert torch.equal(linear.weight, before)  # the original is as it was
    width = linear.in_features
    weakest = before.norm(dim=0).argsort()[: width // 2]
    with torch.no_grad():
        linear.weight[:, weakest] = 0
    image = torch.randn(2, whole[0].preprocessing.channels, 64, 64)  # type: ignore[union-attr]
    torch.testing.assert_close(pruned(image), whole(image), atol=1e-5, rtol=1e-4)
    assert told.startswith(f"the head keeps {width - width // 2} of {width} features")
    assert (parameters(pruned[0]) < parameters(whole[0])) is bool(layer)
    assert (f"and {layer}" if layer else "the backbone still makes all") in told


def test_what_cannot_be_pruned_is_one_line() -> None:
    whole = network("small_cnn", in_channels=3, width=4)
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(UserError, match="above 0 and below 1"):
            prune_head(whole, share)
    with pytest.raises(UserError, match="one linear layer"):
        prune_head(nn.Sequential(whole[0], nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(3, 2))), 0.5)
