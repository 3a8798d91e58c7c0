"""A task of one's own: a function that returns a `Task`; here classification with the focal loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from tlresearch.backbones.base import StagedBackbone
from tlresearch.config.schema import ExperimentConfig
from tlresearch.data.base import Data
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import task_arguments
from tlresearch.tasks.classification import ClassificationTask


class FocalTask(ClassificationTask):
    """Classification whose loss looks away from samples that are right already (Lin et al., ICCV 2017).

    Args:
        backbone: The staged backbone.
        gamma: How strongly; 0 is cross entropy.
        rest: Arguments of `ClassificationTask`.
    """

    def __init__(self, backbone: StagedBackbone, *, gamma: float, **rest: Any) -> None:
        super().__init__(backbone, **rest)
        self.gamma = gamma

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Returns the mean focal loss of a batch."""
        each = functional.cross_entropy(outputs, targets, reduction="none")
        return ((1 - (-each).exp()) ** self.gamma * each).mean()


def focal(config: ExperimentConfig, backbone: StagedBackbone, data: Data, schedule: FreezeSchedule) -> Task:
    """Builds the task of an experiment; `gamma` comes from `task.options`."""
    return FocalTask(
        backbone,
        gamma=float(config.task.options["gamma"]),
        classes=len(data.classes),
        kind=data.kind,
        dropout=config.task.dropout,
        **task_arguments(config, backbone, data, schedule),  # optimizer, mixup, L2-SP, what checkpoints hold
    )
