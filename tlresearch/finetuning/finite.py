"""A loss that is not finite ends the run at its step, with what a person needs to find out why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from tlresearch.base.errors import RunFailedError

WINDOW = 50  # steps between two looks where looking costs: a GPU would have to be waited for, or other ranks asked


class NonFiniteLossError(RunFailedError):
    """The training loss became NaN or infinite."""


class FiniteLoss(L.Callback):
    """Looks at the loss of each step: at once on the CPU, else every `WINDOW` steps and at an epoch's end.

    Nothing is computed in between, the losses are only kept: a step of a GPU is never waited for. The first bad step
    is named all the same. Several ranks ask each other, so that all end at the same step.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._rates: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the steps of an epoch that was broken off."""
        self._losses, self._rates = [], []

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keeps a step's loss, and looks if it is time.

        Raises:
            NonFiniteLossError: With the first step whose loss was not finite.
        """
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is None:
            return
        self._losses.append(loss.detach())
        self._rates.append(max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups))
        at_once = loss.device.type == "cpu" and trainer.world_size == 1
        if at_once or len(self._losses) == WINDOW or batch_idx + 1 == trainer.num_training_batches:
            self._look(trainer, batch_idx)
            self._losses, self._rates = [], []

    def _look(self, trainer: L.Trainer, batch_idx: int) -> None:
        steps = len(self._losses)
        values = [float(self._losses[0])] if steps == 1 else torch.stack(self._losses).tolist()
        first = next((step for step, value in enumerate(values) if not math.isfinite(value)), steps)
        if trainer.world_size > 1:
            mine = torch.tensor(first, device=self._losses[0].device)
            first = int(trainer.strategy.reduce(mine, reduce_op="min"))
        if first == steps:
            return
        number = batch_idx - steps + 1 + first
        value = values[first]
        what = f"{value}" if not math.isfinite(value) else "not finite on another rank"
        batches, together = int(trainer.num_training_batches), trainer.accumulate_grad_batches
        step = trainer.current_epoch * -(-batches // together) + number // together
        raise NonFiniteLossError(
            f"the training loss is {what} in step {step} (epoch {trainer.current_epoch}, batch {number}, "
            f"counted from 0) with rate {self._rates[first]:.3g}: lower optimizer.lr, "
            "set trainer.gradient_clip, or train with trainer.precision=32-true"
        )
