"""Features of stages: means over the positions that count, computed once for the same backbone and samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toy import ToySplit, toy_backbone
from tlresearch.activations.features import StageFeatures, pooled, stage_features
from tlresearch.activations.inference import Inference
from tlresearch.activations.store import ActivationStore
from tlresearch.backbones.build import build_backbone
from tlresearch.backbones.channels import channel_axes
from tlresearch.config.schema import BackboneConfig
from tlresearch.data.base import Split


def test_features_are_means_over_positions_that_count() -> None:
    maps = torch.rand(2, 3, 5, 5)
    assert torch.allclose(pooled(maps, {}), maps.mean(dim=(2, 3)))
    tokens = torch.rand(2, 7, 4)
    assert torch.allclose(pooled(tokens, {}), tokens.mean(dim=1))
    mask = torch.tensor([[True] * 7, [True] * 2 + [False] * 5])
    found = pooled({"hidden": tokens, "mask": mask}, {})
    assert torch.allclose(found[1], tokens[1, :2].mean(dim=0))
    sound = torch.rand(2, 7, 3, 4)  # the length of a clip must not be taken for its width
    assert torch.allclose(pooled({"map": sound, "mask": mask}, {})[1], sound[1, :2].mean(dim=0).flatten())
    assert pooled({"a": maps, "b": torch.rand(2, 6)}, {}).shape == (2, 9)
    last = maps.permute(0, 2, 3, 1)
    assert torch.allclose(pooled({"a": last}, {"a": 3}), maps.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("name", "widths"),
    [("torchvision/swin_t", [96, 96, 192, 384, 768]), ("torchvision/convnext_tiny", [96, 96, 192, 384, 768]),
     ("small_cnn", [16, 32, 64, 64])],
)  # fmt: skip
@torch.no_grad()
def test_wide_images_are_averaged_over_their_positions(name: str, widths: list[int]) -> None:
    backbone = build_backbone(BackboneConfig(name=name, weights=None)).eval()
    value = torch.rand(2, 3, 64, 160)
    for number, axes in enumerate(channel_axes(backbone)):
        value = backbone(value, number, number + 1)
        assert pooled(value, axes).shape == (2, widths[number])
        if number == 0:
            positions = value.flatten(1, 2) if axes["value"] == 3 else value.flatten(2).transpose(1, 2)
            assert torch.allclose(pooled(value, axes), positions.mean(dim=1), atol=1e-6)


def test_stages_run_once_for_the_same_weights_and_samples(tmp_path: Path) -> None:
    split, store = ToySplit(10, 0, noisy=False), ActivationStore(tmp_path, 10**9)

    def source() -> Split:
        return split

    def features(seed: int = 0, rows: range = range(10), kept: ActivationStore | None = store) -> StageFeatures:
        about = {"data": "d", "preprocessing": "", "split": "val"}
        cpu = torch.device("cpu")
        return stage_features(
            toy_backbone(seed), source, rows, about, how=Inference(), device=cpu, batch_size=4, store=kept
        )

    first = features()
    assert first.computed
    assert [part.shape for part in first.by_stage] == [(10, 4), (10, 4), (10, 96)]
    again, without = features(), features(kept=None)
    assert not again.computed
    for one, other, third in zip(first.by_stage, again.by_stage, without.by_stage, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(one, third)
    assert features(seed=1).computed
    fewer = features(rows=range(0, 10, 3))
    assert fewer.computed
    assert np.allclose(fewer.by_stage[-1], first.by_stage[-1][::3], atol=1e-6)
