"""Backbones that end in feature maps: the same values as in the original network, whatever the cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from tests.toy import toy_backbone
from tlresearch.activations.inference import Inference, frozen
from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.channels import adapt_channels
from tlresearch.backbones.pyramid import CURRENT, PyramidBackbone
from tlresearch.base.errors import UserError
from tlresearch.config.schema import BackboneConfig


def build(name: str, **options: Any) -> PyramidBackbone:
    built = build_backbone(BackboneConfig(name=name, weights=options.pop("weights", None), **options), "maps")
    assert isinstance(built, PyramidBackbone)
    return built.eval()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("torchvision/squeezenet1_1", [4, 8, 17]),
        ("torchvision/mobilenet_v3_small", [2, 4, 8, 16, 32]),
        ("torchvision/swin_t", [4, 8, 16, 32]),  # gives (batch, H, W, C) but for its last stage
        ("small_cnn", [2, 4, 8]),
    ],
)
@torch.no_grad()
def test_the_cut_at_any_boundary_gives_the_same_maps(name: str, strides: list[int]) -> None:
    backbone = build(name)
    x = torch.rand(2, 3, 96, 96)
    whole = backbone(x)
    assert [found.stride for found in backbone.maps] == strides
    assert [tuple(leaf.shape[:2]) for leaf in whole.values()] == [(2, found.channels) for found in backbone.maps]
    for cut in range(1, len(backbone.stages)):
        assert equal(backbone(backbone(x, stop=cut), start=cut), whole)


@torch.no_grad()
def test_maps_are_those_of_the_original_network() -> None:
    backbone = build("torchvision/resnet18")
    network = models.resnet18()
    network.load_state_dict(backbone.original_state_dict(), strict=False)
    seen: list[Tensor] = []
    for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    x = torch.rand(1, 3, 64, 64)
    network.eval()(x)
    assert all(torch.equal(one, other) for one, other in zip(backbone(x).values(), seen, strict=True))


@torch.no_grad()
def test_a_boundary_carries_the_maps_in_front_of_it_and_nothing_else() -> None:
    backbone = build("torchvision/mobilenet_v2")
    x = torch.rand(1, 3, 64, 64)
    assert isinstance(backbone(x, stop=1), Tensor)  # no map yet
    assert list(backbone(x, stop=2)) == ["0"]  # the running value is the map itself
    assert list(backbone(x, stop=5)) == [CURRENT, "0", "1", "2"]
    run = frozen(backbone, Inference(), torch.device("cpu"), stop=5)
    assert all(torch.allclose(run(x)[name], leaf, atol=1e-4) for name, leaf in backbone(x, stop=5).items())  # type: ignore[index]


def test_stages_and_names_are_those_of_the_pooled_backbone() -> None:
    pooled = build_backbone(BackboneConfig(name="torchvision/resnet18", weights=None))
    backbone = build("torchvision/resnet18")
    assert backbone.stage_names == pooled.stage_names
    assert backbone.state_dict().keys() == pooled.state_dict().keys()  # so a classifier's checkpoint fits
    assert backbone.train().stages[-1].training


def test_a_network_without_maps_is_refused() -> None:
    with pytest.raises(UserError, match=r"vit_b_16 has no feature maps of several resolutions.*swin_t"):
        build("torchvision/vit_b_16")


@torch.no_grad()
def test_one_channel_answers_as_the_grey_image_in_three() -> None:
    three, one = build("small_cnn"), build("small_cnn")
    one.load_state_dict(three.state_dict())
    adapt_channels(one, 1)
    grey = torch.rand(2, 1, 32, 32)
    assert one.preprocessing.channels == 1
    for name, leaf in three(grey.expand(-1, 3, -1, -1)).items():
        assert torch.allclose(one(grey)[name], leaf, atol=1e-5)


@torch.no_grad()
def test_many_channels_that_are_equal_answer_as_three() -> None:
    three, five = build("small_cnn"), build("small_cnn")
    with torch.no_grad():  # whose weights do not tell channels apart, as the rule repeats them unevenly
        weight = three.stages[0].conv1.weight
        weight.copy_(weight.mean(dim=1, keepdim=True).expand_as(weight))
    five.load_state_dict(three.state_dict())
    adapt_channels(five, 5)
    grey = torch.rand(2, 1, 32, 32)
    for name, leaf in three(grey.expand(-1, 3, -1, -1)).items():
        assert torch.allclose(five(grey.expand(-1, 5, -1, -1))[name], leaf, atol=1e-5)
    assert len(five.preprocessing.std) == 5


def test_channels_from_a_config_and_where_they_cannot_be_had() -> None:
    backbone = build("torchvision/squeezenet1_1", in_channels=4)
    assert backbone(torch.rand(1, 4, 64, 64))["0"].shape[1] == 64
    odd = StagedBackbone({"only": nn.Linear(3, 2)}, out_features=2, preprocessing=toy_backbone().preprocessing)
    with pytest.raises(UserError, match=r"backbone.in_channels: the first layer is no convolution over 1 channels"):
        adapt_channels(odd, 2)


@pytest.mark.parametrize("model", ["lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large"])
def test_dense_models_of_torchvision_in_stages(model: str, tmp_path: Path) -> None:
    network = models.get_model(model, weights=None, weights_backbone=None).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = build(f"torchvision/{model}", weights=str(tmp_path / "weights.pth"))
    assert backbone.weights.random_stages == ()
    x = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected = network.backbone(x)
        for cut in (0, 1, len(backbone.stages) - 1):
            assert equal(backbone(backbone(x, stop=cut), start=cut), {name: expected[name] for name in backbone(x)})
    assert backbone.native_head is not None
    detects = model.startswith("ssd")
    original = network.state_dict()
    for classes, wanted in ((91 - detects if detects else 21, "all"), (3, "some")):
        head = backbone.native_head(classes).state_dict()
        prefix = "" if detects else "classifier."
        same = [
            torch.equal(leaf, original[prefix + name])
            for name, leaf in head.items()
            if leaf.is_floating_point() and leaf.shape == original[prefix + name].shape
        ]
        assert all(same)
        changed = [name for name, leaf in head.items() if leaf.shape != original[prefix + name].shape]
        assert bool(changed) == (wanted == "some")


def test_a_dense_model_is_no_classifier() -> None:
    with pytest.raises(UserError, match="lraspp_mobilenet_v3_large ends in feature maps: it is for segmentation"):
        build_backbone(BackboneConfig(name="torchvision/lraspp_mobilenet_v3_large", weights=None))


def test_a_network_whose_last_stage_is_shortened_has_maps() -> None:
    """Its stage is looked at on fake tensors within a pass on fake tensors, where no buffer can be compared."""
    backbone = build_backbone(BackboneConfig(name="torchvision/mobilenet_v2", weights=None), "maps")
    assert isinstance(backbone, PyramidBackbone)
    assert [found.stride for found in backbone.maps] == [2, 4, 8, 16, 32]
