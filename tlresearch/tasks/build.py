"""Tasks by name, and the step from config to task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypedDict, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlresearch.backbones.base import End, StagedBackbone, evaluating
from tlresearch.base.errors import ConfigError, load_object
from tlresearch.config.schema import DataConfig, ExperimentConfig, TaskConfig, TrainerConfig
from tlresearch.data.base import Batch, Data, Preprocessing, SampleKey, TargetKind
from tlresearch.data.mixing import mix_batch
from tlresearch.finetuning.optimizers import build_optimizer
from tlresearch.finetuning.regularize import L2SP
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.tasks.base import Mixer, OptimizerFactory, Penalty, Task
from tlresearch.tasks.classification import ClassificationTask, balanced_weights
from tlresearch.tasks.detection import DetectionTask, detection_head
from tlresearch.tasks.segmentation import SegmentationTask, segmentation_head, segmentation_loss
from tlresearch.tasks.speech import SpeechRecognitionTask
from tlresearch.tasks.tokens import TokensTask, tag_weights


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
        weights = balanced_weights(torch.as_tensor(data.splits["train"].targets), data.kind, classes)
    return ClassificationTask(
        backbone,
        classes=classes,
        kind=data.kind,
        dropout=config.task.dropout,
        label_smoothing=config.task.label_smoothing,
        class_weights=weights,
        class_names=data.classes,
        **task_arguments(config, backbone, data, schedule),
    )


def speech_recognition(
    config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule
) -> SpeechRecognitionTask:
    """Builds the speech recognition task of an experiment."""
    return SpeechRecognitionTask(
        backbone,
        characters=data.classes,
        dropout=config.task.dropout,
        **task_arguments(config, backbone, data, schedule),
    )


def segmentation(
    config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule
) -> SegmentationTask:
    """Builds the segmentation task of an experiment."""
    return SegmentationTask(
        backbone,
        segmentation_head(config.task, backbone, len(data.classes), _side(data), config.name),
        classes=data.classes,
        criterion=segmentation_loss(config.task, data, config.name),
        **task_arguments(config, backbone, data, schedule),
    )


def tokens(config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule) -> TokensTask:
    """Builds the token classification task of an experiment."""
    targets = list(data.splits["train"].targets)
    balanced = config.task.class_weights == "balanced"
    return TokensTask(
        backbone,
        classes=data.classes,
        dropout=config.task.dropout,
        label_smoothing=config.task.label_smoothing,
        class_weights=tag_weights(targets, len(data.classes)) if balanced else None,
        **task_arguments(config, backbone, data, schedule),
    )


def _side(data: Data) -> int:
    """Side of the input in pixels; sources of masks and boxes always say it."""
    assert isinstance(data.preprocessing, Preprocessing)
    assert data.preprocessing.crop is not None
    return data.preprocessing.crop


def detection(
    config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule
) -> DetectionTask:
    """Builds the task of an experiment that looks for objects: their boxes, or their masks too."""
    return DetectionTask(
        backbone,
        detection_head(config.task, backbone, len(data.classes), _side(data), config.name),
        classes=data.classes,
        **task_arguments(config, backbone, data, schedule),
    )


TASKS: Mapping[str, TaskBuilder] = {
    "classification": classification,
    "speech_recognition": speech_recognition,
    "segmentation": segmentation,
    "detection": detection,
    "instances": detection,
    "tokens": tokens,
}
ENDS: Mapping[str, End] = {
    "segmentation": "maps",
    "detection": "maps",
    "instances": "maps",
    "speech_recognition": "sequence",
    "tokens": "sequence",
}
"""What tasks need at the backbone's end, where it is not one vector per sample."""
KINDS: Mapping[str, tuple[TargetKind, ...]] = {
    "classification": ("binary", "multiclass", "multilabel"),
    "speech_recognition": ("transcript",),
    "segmentation": ("masks",),
    "detection": ("boxes",),
    "instances": ("instances",),
    "tokens": ("tokens",),
}
"""What kinds of targets the tasks learn."""


def build_task(config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule) -> Task:
    """Builds the task of an experiment: one of `TASKS`, or a function by dotted path with the same arguments.

    The head's first weights depend on ``config.seed`` alone, not on how the backbone was made.
    """
    builder = TASKS.get(config.task.name) or load_object(config.task.name, "task.name")
    kinds = KINDS.get(config.task.name, (data.kind,))
    if data.kind not in kinds:
        wanted = " or ".join(kinds)
        raise ConfigError(
            [f"task.name: {config.task.name} learns {wanted} targets, but those of {data.name} are {data.kind}"],
            config.name,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task = builder(config, backbone, data, schedule)
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


def needed_end(config: TaskConfig) -> End:
    """Returns what a task needs at the backbone's end; a task of one's own may say it as `end` of its builder."""
    if config.name in TASKS:
        return ENDS.get(config.name, "pooled")
    end: End = getattr(load_object(config.name, "task.name"), "end", "pooled")
    return end


def task_arguments(
    config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule
) -> TaskArguments:
    """Builds what a config says of every task; a task of one's own passes it on to `Task`."""
    names = list(backbone.stage_names)
    random = {names.index(stage) for stage in backbone.weights.random_stages}
    return TaskArguments(
        optimizer=partial(build_optimizer, config.optimizer, fused=_may_fuse(config.trainer)),
        changing=frozenset(schedule.changing_stages | random),
        mixer=_mixer(config.data, len(data.classes), config.seed),
        penalty=L2SP(backbone, config.regularize.l2_sp) if config.regularize.l2_sp > 0 else None,
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
