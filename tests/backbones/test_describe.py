from __future__ import annotations

import torch

from tlresearch.backbones.describe import describe_stages
from tlresearch.backbones.vision import build_torchvision


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
