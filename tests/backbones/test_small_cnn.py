from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tlresearch.backbones.small_cnn import build_small_cnn
from tlresearch.base.errors import UserError, WeightsError


@pytest.mark.parametrize("side", [8, 28, 64])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_takes_small_images_of_any_channels(side: int, channels: int) -> None:
    backbone = build_small_cnn(options={"in_channels": channels})
    assert backbone.stage_names == ("block1", "block2", "block3", "block4")
    assert backbone(torch.zeros(2, channels, side, side)).shape == (2, backbone.out_features) == (2, 64)
    assert backbone.preprocessing.crop is None
    assert backbone.preprocessing.channels == channels


def test_width_is_an_option() -> None:
    assert build_small_cnn(options={"width": 4}).out_features == 16
    with pytest.raises(UserError, match="at least 1 but got 0"):
        build_small_cnn(options={"width": 0})
    with pytest.raises(UserError, match="no option 'depth'; it has width"):
        build_small_cnn(options={"depth": 2})


def test_a_file_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build_small_cnn()
    torch.save(source.original_state_dict(), tmp_path / "w.pth")
    loaded = build_small_cnn(weights=str(tmp_path / "w.pth"))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(source.eval()(x), loaded.eval()(x))
    assert loaded.weights.random_stages == ()
    with pytest.raises(WeightsError, match="no pretrained weights"):
        build_small_cnn(weights="default")
