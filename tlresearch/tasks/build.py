"""Tasks by name, and the step from config to task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypedDict

import torch

from tlresearch.backbones.base import StagedBackbone
from tlresearch.config.schema import DataConfig, ExperimentConfig
from tlresearch.data.base import Batch, Data
from tlresearch.data.mixing import mix_batch
from tlresearch.errors import ConfigError, load_object
from tlresearch.finetuning.optimizers import build_optimizer
from tlresearch.finetuning.regularize import L2SP
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.tasks.base import Mixer, OptimizerFactory, Penalty, Task
from tlresearch.tasks.classification import ClassificationTask, balanced_weights


class TaskArguments(TypedDict):
    """What every task is built with, whatever it learns; see `Task`."""

    optimizer: OptimizerFactory
    changing: frozenset[int]
    mixer: Mixer | None
    penalty: Penalty | None


TaskBuilder = Callable[[ExperimentConfig, StagedBackbone, Data, FreezeSchedule], Task]


def classification(
    config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule
) -> ClassificationTask:
    """Builds the classification task of an experiment."""
    classes = len(data.classes)
    if data.kind == "multilabel" and config.task.label_smoothing:
        raise ConfigError(["task.label_smoothing: is for one label per sample, but the data has several"], config.name)
    weights = None
    if config.task.class_weights == "balanced":
        weights = balanced_weights(data.splits["train"].targets, data.kind, classes)
    return ClassificationTask(
        backbone,
        classes=classes,
        kind=data.kind,
        dropout=config.task.dropout,
        label_smoothing=config.task.label_smoothing,
        class_weights=weights,
        **task_arguments(config, backbone, data, schedule),
    )


TASKS: Mapping[str, TaskBuilder] = {"classification": classification}


def build_task(config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule) -> Task:
    """Builds the task of an experiment: one of `TASKS`, or a function by dotted path with the same arguments.

    The head's first weights depend on ``config.seed`` alone, not on how the backbone was made.
    """
    builder = TASKS.get(config.task.name) or load_object(config.task.name, "task.name")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return builder(config, backbone, data, schedule)


def task_arguments(
    config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule
) -> TaskArguments:
    """Builds what a config says of every task; a task of one's own passes it on to `Task`."""
    names = list(backbone.stage_names)
    random = {names.index(stage) for stage in backbone.weights.random_stages}
    return TaskArguments(
        optimizer=partial(build_optimizer, config.optimizer),
        changing=frozenset(schedule.changing_stages | random),
        mixer=_mixer(config.data, len(data.classes), config.seed),
        penalty=L2SP(backbone, config.regularize.l2_sp) if config.regularize.l2_sp > 0 else None,
    )


def _mixer(config: DataConfig, classes: int, seed: int) -> Mixer | None:
    if not config.mixup and not config.cutmix:
        return None

    def mix(batch: Batch, epoch: int) -> Batch:
        inputs, targets = mix_batch(
            batch.inputs,
            batch.targets,
            batch.indices,
            classes=classes,
            mixup=config.mixup,
            cutmix=config.cutmix,
            seed=seed,
            epoch=epoch,
        )
        return batch._replace(inputs=inputs, targets=targets)

    return mix
