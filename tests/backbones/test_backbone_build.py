from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision

from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import UserError
from tlresearch.config.schema import BackboneConfig


def test_each_name_of_the_table_is_built() -> None:
    cnn = build_backbone(BackboneConfig(name="small_cnn", weights=None, options={"width": 4, "in_channels": 1}))
    assert cnn.preprocessing.channels == 1
    resnet = build_backbone(BackboneConfig(name="torchvision/resnet18", weights=None, granularity="block"))
    assert len(resnet.stage_names) == 9


def test_with_a_checkpoint_the_weights_are_left_to_the_caller() -> None:
    config = BackboneConfig(name="torchvision/squeezenet1_1", weights="default", checkpoint="abc")
    assert build_backbone(config).weights.source == "random"


def test_a_backbone_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_backbones.py").write_text(
        "from tlresearch.backbones.small_cnn import build_small_cnn\n"
        "def mine(channels): return build_small_cnn(options={'in_channels': channels})\n"
        "def other(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    built = build_backbone(BackboneConfig(name="my_backbones.mine", options={"channels": 2}))
    assert built.eval()(torch.zeros(1, 2, 8, 8)).shape == (1, 64)
    with pytest.raises(UserError, match=r"must give an nn\.Module or a StagedBackbone, but gave int"):
        build_backbone(BackboneConfig(name="my_backbones.other"))
    sys.modules.pop("my_backbones")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yolov8n", r"unknown backbone 'yolov8n'; the YOLO on offer is YOLOS, such as hf/hustvl/yolos-tiny; known: "),
        ("small_cn", r"unknown backbone 'small_cn' \(did you mean 'small_cnn'\?\); known: .*small_cnn"),
        ("resnet18", r"did you mean 'torchvision/resnet18'"),
        ("torchvison/resnet18", r"did you mean 'torchvision/'"),
        ("torchvision/resnet81", r"no model 'resnet81' \(did you mean 'resnet18' or .*; all of them: "),
        ("no_such_package.mine", r"no module 'no_such_package'"),
    ],
)
def test_unknown_names_list_the_known(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_backbone(BackboneConfig(name=name, weights=None))


def test_the_same_backbone_again_is_an_equal_copy(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save(torchvision.models.squeezenet1_1().state_dict(), file)
    config = BackboneConfig(name="torchvision/squeezenet1_1", weights=str(file))
    first, second = build_backbone(config), build_backbone(config)
    with torch.no_grad():
        next(first.parameters()).add_(1.0)
    third = build_backbone(config)
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, third.state_dict()[name])
    assert second.weights == third.weights
    other = {name: tensor + 1 for name, tensor in torchvision.models.squeezenet1_1().state_dict().items()}
    torch.save(other, file)
    assert not torch.equal(next(build_backbone(config).parameters()), next(second.parameters()))


def test_random_weights_are_drawn_anew() -> None:
    config = BackboneConfig(name="torchvision/squeezenet1_1", weights=None)
    assert not torch.equal(next(build_backbone(config).parameters()), next(build_backbone(config).parameters()))
