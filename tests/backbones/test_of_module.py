"""Any nn.Module as a backbone by dotted path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.toy import toy_text
from tests.tracking.conftest import THIRD_PARTY
from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import ConfigError, UserError
from tlresearch.config.load import load_text
from tlresearch.config.schema import BackboneConfig
from tlresearch.run.fit import fit

pytestmark = [pytest.mark.filterwarnings(rule) for rule in THIRD_PARTY]
MINE = "tests.backbones.test_of_module"


class Residual(nn.Module):
    """A network as somebody writes it, with a list of layers."""

    def __init__(self, width: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.layers = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(depth)])

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for layer in self.layers:
            x = x + layer(x.relu())
        return x.mean(dim=(2, 3))


def test_a_network_is_cut_and_gives_what_it_gave() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(name=f"{MINE}.Residual", side=8, options={"width": 6}))
    assert backbone.out_features == 6
    assert len(backbone.stage_names) >= 3
    assert backbone.preprocessing.crop == 8  # type: ignore[attr-defined]
    assert len(backbone.weights.sha256) == 64


def test_it_is_trained_by_depth_resumed_and_served() -> None:
    text = toy_text(
        backbone=f"{{name: {MINE}.Residual, side: 8, width: 6}}",
        freeze="{schedule: gradual, epochs: 6}",
        tracking="{figures: false, system_metrics: false}",
    )
    result = fit(load_text(text))
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]
    from tlresearch.studies.reproduction.verify import verify

    checks = {check.name: check.state for check in verify(result.run_id).checks}
    assert checks["trained weights"] == checks["parts"] == "ok", checks


def test_a_network_of_timm_by_its_function() -> None:
    config = BackboneConfig(name="timm.create_model", side=32, options={"model_name": "resnet10t", "num_classes": 0})
    backbone = build_backbone(config)
    assert backbone.out_features == 512


BAD = {
    "no network": ("tests.toy.toy_data", {}, "must give an nn.Module or a StagedBackbone, but gave Data"),
    "another size": (
        "timm.create_model",
        {"model_name": "vit_tiny_patch16_224", "num_classes": 0},
        "set backbone.side",
    ),
    "wrong arguments": (f"{MINE}.Residual", {"widht": 3}, "cannot be made with these arguments: TypeError"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_network_is_one_line(case: str) -> None:
    name, options, expected = BAD[case]
    with pytest.raises((UserError, ConfigError)) as caught:
        build_backbone(BackboneConfig(name=name, side=32, options=options))
    assert expected in str(caught.value)
    assert "backbone" in str(caught.value)


def test_side_is_for_networks_by_dotted_path() -> None:
    with pytest.raises(ConfigError, match=r"backbone\.side: is only read by an nn\.Module by dotted path"):
        load_text(toy_text(backbone="{name: small_cnn, weights: null, side: 8}"))
