"""A task is refused before training where torch would stop in the middle of it."""

from __future__ import annotations

import pytest

from tests.toy import toy_text
from tlresearch.backbones.build import build_backbone
from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_text
from tlresearch.data.build import build_data
from tlresearch.finetuning.presets import build_schedule
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import build_task


def task(batch: int, freeze: str, name: str = "torchvision/resnet18", side: int = 32) -> Task:
    data = f"{{name: digits, classes: ['0', '1'], labels_per_class: 4, batch_size: {batch}, image_size: {side}}}"
    text = toy_text(data=data, backbone=f"{{name: {name}, weights: null, in_channels: 1}}", freeze=freeze)
    config = load_text(text).config
    backbone = build_backbone(config.backbone)
    read = build_data(config.data, preprocessing=backbone.preprocessing, seed=0)
    return build_task(config, backbone, read, build_schedule(config, backbone.stage_names))


FULL = "{schedule: full, epochs: 1}"


@pytest.mark.parametrize("freeze", [FULL, "{schedule: linear_probe, epochs: 1, frozen_norm: train}"])
def test_batch_norm_over_one_value_is_refused(freeze: str) -> None:
    with pytest.raises(ConfigError, match=r"data.batch_size: batch norm \(.*\) would be trained on a single value"):
        task(1, freeze)


@pytest.mark.parametrize(
    ("batch", "freeze", "name", "side"),
    [
        (2, FULL, "torchvision/resnet18", 32),
        (1, FULL, "torchvision/resnet18", 64),  # 2 x 2 positions at the end
        (1, "{schedule: linear_probe, epochs: 1}", "torchvision/resnet18", 32),
        (1, FULL, "torchvision/squeezenet1_1", 64),  # has no batch norm
    ],
)
def test_one_sample_is_enough_where_there_is_something_to_average(
    batch: int, freeze: str, name: str, side: int
) -> None:
    assert task(batch, freeze, name, side).backbone.training
