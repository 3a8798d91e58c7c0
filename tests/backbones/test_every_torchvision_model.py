from __future__ import annotations

import gc

import pytest
import torch

from tlresearch.backbones.cutting import cut
from tlresearch.backbones.vision import known_models

from .cheap import (
    BUILT_SMALLER,
    SIZES,
    assert_covers,
    assert_equal,
    calibrate,
    images,
    run,
    torchvision_network,
    without_head,
)

ONE_SAMPLE = {"vit_h_14", "vit_l_16", "vit_l_32", "maxvit_t"}


def test_all_models_are_known() -> None:
    assert len(known_models()) >= 80
    assert {"resnet18", "vit_h_14", "swin_v2_b", "maxvit_t"} <= set(known_models())


@pytest.mark.parametrize("name", known_models())
def test_stages_are_the_network(name: str) -> None:
    network = torchvision_network(name)
    x = images(1 if name in ONE_SAMPLE else 2, BUILT_SMALLER.get(name, SIZES.get(name, 32)))
    calibrate(network, x)
    native = BUILT_SMALLER.get(name, 299 if name == "inception_v3" else 224)
    pieces = cut(network, torch.zeros(1, 3, native, native))
    assert pieces.head is not None
    assert_covers(pieces.stages, network, pieces.head)
    assert 5 <= len(pieces.stages) <= (33 if name.startswith("vit") else 14)
    assert all(any(True for _ in stage.parameters()) for stage in pieces.stages.values())
    assert all(len(stage_name) <= 32 for stage_name in pieces.stages)

    with torch.inference_mode():
        expected = without_head(network, pieces.head)(x)
    with torch.no_grad():  # an inference tensor has no version to look at
        found = run(pieces.stages, x)
    assert_equal(found, expected)
    assert found.shape == (len(x), pieces.out_features)
    if len(x) > 1:
        assert (found[0] - found[1]).abs().max() > 1e-5 * found.abs().max()
    del network, pieces
    gc.collect()
