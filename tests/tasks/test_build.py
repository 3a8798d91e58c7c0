"""What a task says of itself: found by name or path, a direction for every metric, options that are checked; a task is
refused before training where torch would stop in the middle of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dense import masks_text, save_masks
from tests.serving.every_task import EVERY, make
from tests.toy import toy_text
from tlresearch.backbones.build import build_backbone
from tlresearch.base.direction import direction_of
from tlresearch.base.errors import ConfigError, UserError
from tlresearch.config.catalogue import TASKS
from tlresearch.config.load import load_text
from tlresearch.data.build import build_data
from tlresearch.finetuning.presets import build_schedule
from tlresearch.run.fit import fit
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import build_task, find_task

QUIET = {"tracking.figures": False, "tracking.model": False, "tracking.system_metrics": False}


@pytest.mark.parametrize("name", TASKS.names)
def test_every_task_is_a_class_that_says_what_it_is(name: str) -> None:
    task = find_task(name)
    assert task.learns
    assert task.predictor is not None


def test_a_path_that_leads_to_something_else_is_a_users_mistake() -> None:
    with pytest.raises(ConfigError, match="must be a class derived from"):
        find_task("tests.toy.toy_data")
    with pytest.raises(UserError, match="has no 'Nothing'"):
        find_task("tests.toy.Nothing")


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY)
def test_every_metric_has_a_direction(kind: str, tmp_path: Path) -> None:
    result = fit(load_text(EVERY[kind](tmp_path)), {"freeze.epochs": 1, **QUIET})
    metrics = [name for name in result.metrics if not name.startswith("gap/")]
    assert metrics
    declared = type(result.task).directions
    undirected = [name for name in metrics if direction_of(name, declared) is None]
    assert [
        name for name in undirected if not name.endswith("interval_coverage")
    ] == []  # best where it was meant to be


def test_options_are_checked_against_those_the_task_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.options: segmentation has no option 'decodr' .*decoder"):
        make(masks_text(save_masks(tmp_path / "m", count=8), task="{name: segmentation, options: {decodr: unet}}"))


def test_tasks_know_nothing_by_default() -> None:
    assert (Task.learns, Task.predictor, Task.end) == ((), None, "pooled")


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
