"""The axis of the channels between stages, where a map's shape does not tell it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.channels import channel_axes, channel_axis
from tlresearch.backbones.pyramid import PyramidBackbone, to_maps
from tlresearch.config.schema import BackboneConfig
from tlresearch.modality.image import Preprocessing


class Last(nn.Module):
    """Halves an image and gives ``(batch, H, W, channels)``."""

    def __init__(self, before: int, channels: int, *, first: bool) -> None:
        super().__init__()
        self.conv, self.first = nn.Conv2d(before, channels, 2, 2), first

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.first else x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Sized(Last):
    """As `Last`, for one size only."""

    def forward(self, x: Tensor) -> Tensor:
        assert 32 in x.shape
        return super().forward(x)


def backbone(first: nn.Module, second: nn.Module) -> StagedBackbone:
    return StagedBackbone({"a": first, "b": second}, out_features=4, preprocessing=Preprocessing(32, 32))


def test_as_many_channels_as_pixels_are_told_apart_by_a_larger_image() -> None:
    axes = channel_axes(backbone(Last(3, 16, first=True), Last(16, 5, first=False)))
    assert axes == ({"value": 3}, {"value": 3})  # maps of 16 x 16 with 16 channels


def test_a_network_of_one_size_is_told_by_the_equal_sides() -> None:
    assert channel_axes(backbone(Sized(3, 7, first=True), Last(7, 5, first=False))) == ({"value": 3}, {"value": 3})
    assert channel_axis((1, 16, 16, 16), None, before=3) == 3


def test_stages_that_halve_one_side_alone_are_no_sign_of_channels_last() -> None:
    convolutions = backbone(nn.Conv2d(3, 16, 2, (2, 4)), nn.Conv2d(16, 8, 1))
    assert channel_axes(convolutions) == ({"value": 1}, {"value": 1})  # 16 x 8 pixels of 16 channels


def test_maps_of_a_pyramid_have_their_channels_first_for_wide_images() -> None:
    pyramid = to_maps(backbone(Last(3, 16, first=True), Last(16, 5, first=False)), "toy")
    assert isinstance(pyramid, PyramidBackbone)
    assert [(found.channels, found.stride) for found in pyramid.maps] == [(16, 2), (5, 4)]
    shapes = [tuple(leaf.shape) for leaf in pyramid(torch.zeros(1, 3, 32, 96)).values()]
    assert shapes == [(1, 16, 16, 48), (1, 5, 8, 24)]


@pytest.mark.parametrize(("name", "axis"), [("swin_tiny_patch4_window7_224", 3), ("convnext_atto", 1)])
def test_timms_networks(name: str, axis: int) -> None:
    pytest.importorskip("timm", reason="the extra timm is not installed")
    axes = channel_axes(build_backbone(BackboneConfig(name=f"timm/{name}", weights=None)))
    assert axes[:4] == ({"value": axis},) * 4


def test_behind_a_spectrogram_the_image_backbone_is_asked() -> None:
    pytest.importorskip("transformers", reason="the extra text is not installed")
    axes = channel_axes(build_backbone(BackboneConfig(name="log_mel/torchvision/swin_t", weights=None)))
    assert axes[:5] == ({}, *({"value": 3},) * 4)
