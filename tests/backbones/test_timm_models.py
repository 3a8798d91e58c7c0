from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from tlresearch.backbones.timm_models import build_timm
from tlresearch.base.errors import MissingExtraError, UserError, WeightsError

from .cheap import assert_covers, assert_equal, calibrate, fill, images, run

FAMILIES = {
    "resnet18": 5,
    "vit_tiny_patch16_224": 13,
    "deit_tiny_distilled_patch16_224": 13,
    "convnext_atto": 5,
    "swin_tiny_patch4_window7_224": 5,
    "efficientnet_b0": 9,
    "tf_efficientnetv2_b0": 8,
    "mobilenetv3_small_050": 7,
    "regnety_002": 5,
    "mixer_s32_224": 9,
    "mobilevit_xxs": 7,
    "edgenext_xx_small": 5,
    "poolformer_s12": 5,
    "repvgg_a0": 5,
}

timm = pytest.importorskip("timm", reason="the extra timm is not installed")


@pytest.mark.parametrize(("name", "count"), FAMILIES.items())
def test_stages_are_the_network(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: built.append(create(*a, **k)) or built[-1])
    backbone = build_timm(name, weights=None)
    (network,) = built
    stages = dict(backbone.named_stages())
    assert len(stages) == count
    assert_covers(stages, network, None)
    fill(network)
    x = images(2, backbone.preprocessing.crop or 224)
    calibrate(network, x)
    backbone.eval()
    with torch.no_grad():
        assert_equal(run(stages, x), network(x))
    torch.manual_seed(0)
    expected = network.train()(x)
    torch.manual_seed(0)
    assert_equal(run(dict(backbone.train().named_stages()), x), expected)


def test_what_cannot_be_traced_is_cut_by_its_structure(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        backbone = build_timm("levit_128s", weights=None)
    assert backbone.way == "structure"
    assert len(backbone.stage_names) > 4
    assert backbone.reasons[0].startswith("graph: ")
    assert not caplog.records
    assert backbone(torch.zeros(2, 3, 224, 224)).shape == (2, backbone.out_features)


def test_preprocessing_is_timms() -> None:
    found = build_timm("vit_tiny_patch16_224.augreg_in21k_ft_in1k", weights=None).preprocessing
    assert (found.crop, found.resize, found.mean, found.interpolation) == (224, 248, (0.5, 0.5, 0.5), "bicubic")


def test_a_file_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), tmp_path / "w.pth")
    backbone = build_timm("resnet18", weights=str(tmp_path / "w.pth"))
    assert backbone.weights.random_stages == ()
    assert not caplog.records


def test_wrong_names_are_user_errors() -> None:
    with pytest.raises(UserError, match="timm has no model 'resnet19'"):
        build_timm("resnet19", weights=None)
    with pytest.raises(UserError, match="has no tag 'a9_in1k'"):
        build_timm("resnet18.a9_in1k", weights=None)
    with pytest.raises(WeightsError, match=r"'a9_in1k' is neither a file nor a tag .*did you mean 'a\d_in1k'"):
        build_timm("resnet18", weights="a9_in1k")
    with pytest.raises(UserError, match=r"backbone.options: timm/resnet18 cannot be built"):
        build_timm("resnet18", weights=None, options={"colour": 1})


def test_pretrained_weights_without_network_name_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    for weights in ("default", "a1_in1k"):
        with pytest.raises(WeightsError, match=r"cannot be downloaded \(no route to host\).*backbone.weights=FILE"):
            build_timm("resnet18", weights=weights)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"tlresearch\[timm\]"):
        build_timm("resnet18", weights=None)
