"""From the config of an experiment to its task."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlresearch.backbones.base import End, StagedBackbone, evaluating
from tlresearch.base.direction import Directions
from tlresearch.base.errors import ConfigError, nearest
from tlresearch.config.catalogue import TASKS
from tlresearch.config.schema import DataConfig, ExperimentConfig, TaskConfig, TrainerConfig
from tlresearch.data.base import Batch, Data, SampleKey
from tlresearch.data.mixing import mix_batch
from tlresearch.finetuning.optimizers import build_optimizer
from tlresearch.finetuning.regularize import L2SP
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.tasks.base import Mixer, Task, TaskArguments
from tlresearch.tasks.losses import build_loss
from tlresearch.tasks.metrics import build_metrics, directions_of


def find_task(name: str) -> type[Task]:
    """Returns the class of a task: one of `TASKS`, or one's own by dotted path.

    Raises:
        ConfigError: If the path leads to something else.
        UserError: If there is nothing at the path.
    """
    found = TASKS.load(name, "task.name")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise ConfigError([f"task.name: {name} must be a class derived from tlresearch.tasks.base.Task"], "task")
    return found


def needed_end(config: TaskConfig) -> End:
    """Returns what a task needs at the backbone's end."""
    return find_task(config.name).end


def declared(config: TaskConfig) -> Directions:
    """Returns the direction of every metric of a task, those that the config adds among them."""
    return {**find_task(config.name).directions, **directions_of(config.metrics)}


def build_task(config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule) -> Task:
    """Builds the task of an experiment.

    The head's first weights depend on ``config.seed`` alone, not on how the backbone was made.

    Raises:
        ConfigError: If the task does not learn such data, or has no such option.
    """
    kind, name = find_task(config.task.name), config.task.name
    if kind.learns and data.kind not in kind.learns:
        learnt = " or ".join(kind.learns)
        raise ConfigError(
            [f"task.name: {name} learns {learnt} targets, but those of {data.name} are {data.kind}"], config.name
        )
    has = f"it has {', '.join(kind.defaults)}" if kind.defaults else "it has none"
    unknown = [
        f"task.options: {name} has no option '{option}'{nearest(option, list(kind.defaults))}; {has}"
        for option in config.task.options
        if option not in kind.defaults
    ]
    if unknown:
        raise ConfigError(unknown, config.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task = kind.build(config, backbone, data, _arguments(config, backbone, data, schedule))
    if config.data.batch_size // config.trainer.devices <= 1:
        _check_batch_of_one(config, task.backbone, data, schedule)
    return task


def _check_batch_of_one(
    config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule
) -> None:
    """Refuses batch norm that is trained on a single value: it has no variance, and torch would stop at it.

    Where a map still has several positions, one sample is enough.
    """
    groups = range(len(backbone.stages))
    moving = {n for phase in schedule.phases for n in groups if phase.trains(n) or phase.frozen_norm == "train"}
    norms: dict[nn.Module, str] = {}
    for number in moving:
        layers = backbone.stages[number].named_modules()
        norms |= {layer: name for name, layer in layers if isinstance(layer, _BatchNorm)}
    if not norms:
        return
    single: list[str] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            single.append(norms[layer])

    hooks = [layer.register_forward_pre_hook(look) for layer in norms]
    try:
        with torch.no_grad(), evaluating(backbone):
            backbone(data.splits["train"].__getitems__([SampleKey(0, 0)]).inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if single:
        raise ConfigError(
            [
                f"data.batch_size: batch norm ({single[0]}) would be trained on a single value of a single sample; "
                "take 2 or more on each device, or freeze the stages with batch norm (freeze.frozen_norm=eval)"
            ],
            config.name,
        )


def _arguments(
    config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule
) -> TaskArguments:
    names = list(backbone.stage_names)
    random = {names.index(stage) for stage in backbone.weights.random_stages}
    task, kind = config.task, find_task(config.task.name)
    balanced = kind.balanced(data) if task.loss is not None and task.class_weights == "balanced" else None
    return TaskArguments(
        criterion=build_loss(task, weights=balanced, ignored=kind.ignored, source=config.name),
        metrics=build_metrics(task.metrics, data, kind.directions, config.name),
        optimizer=partial(build_optimizer, config.optimizer, fused=_may_fuse(config.trainer)),
        changing=frozenset(schedule.changing_stages | random),
        mixer=_mixer(config.data, len(data.classes), config.seed),
        penalty=L2SP(backbone, config.regularize.l2_sp) if config.regularize.l2_sp > 0 else None,
        options=config.task.options,
    )


def _may_fuse(trainer: TrainerConfig) -> bool:
    """Whether an optimizer may unscale gradients itself: Lightning then refuses to clip them under autocast."""
    return trainer.precision != "16-mixed" and trainer.gradient_clip is None


def _mixer(config: DataConfig, classes: int, seed: int) -> Mixer | None:
    if not config.mixup and not config.cutmix:
        return None

    def mix(batch: Batch, epoch: int) -> Batch:
        inputs, targets = mix_batch(
            cast(Tensor, batch.inputs),
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
