from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.describe import check_size, describe_stages
from tlresearch.backbones.vision import build_torchvision
from tlresearch.base.errors import UserError
from tlresearch.config.schema import BackboneConfig


def test_rows_of_resnet18() -> None:
    backbone = build_torchvision("resnet18", weights=None)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.stages[1].eval()
    rows = describe_stages(backbone, torch.zeros(3, 224, 224))
    assert [(row.name, row.depth) for row in rows] == [
        ("stem", 5),
        ("layer1", 4),
        ("layer2", 3),
        ("layer3", 2),
        ("layer4", 1),
    ]
    assert [row.output_shape for row in rows] == [(64, 56, 56), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512,)]
    assert [row.parameters for row in rows] == [9536, 147968, 525568, 2099712, 8393728]
    assert rows[0].buffers == 129
    assert backbone.stages[0].training
    assert not backbone.stages[1].training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(("name", "side"), [("vit_b_32", 96), ("inception_v3", 64)])
def test_a_size_that_the_backbone_does_not_take_is_refused_in_one_line(name: str, side: int) -> None:
    backbone = build_backbone(BackboneConfig(name=f"torchvision/{name}", weights=None))
    check_size(backbone, backbone.preprocessing)
    with pytest.raises(UserError, match=rf"data.image_size: the backbone takes no images of {side} pixels") as caught:
        check_size(backbone, replace(backbone.preprocessing, crop=side, resize=side))
    assert "\n" not in str(caught.value)


def test_a_size_that_the_backbone_takes_is_fine() -> None:
    backbone = build_backbone(BackboneConfig(name="small_cnn", weights=None))
    check_size(backbone, replace(backbone.preprocessing, crop=48, resize=48))
