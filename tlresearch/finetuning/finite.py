"""Ends the run at the first step whose loss is not finite, with an error that helps to find the cause."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from tlresearch.base.errors import RunFailedError

WINDOW = 50  # steps between two checks if a check is expensive: it waits for a GPU, or communicates with other ranks


class NonFiniteLossError(RunFailedError):
    """The training loss became NaN or infinite."""


class FiniteLoss(L.Callback):
    """Checks the loss of each step: immediately on the CPU, otherwise every `WINDOW` steps and at an epoch's end.

    Between checks the losses are only kept, so that no step waits for the GPU. The error names the first bad step all
    the same. Several ranks agree on that step, so that all of them stop.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._rates: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the steps of an epoch that was interrupted."""
        self._losses, self._rates = [], []

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keeps the loss of a step, and checks the kept losses if it is time.

        Raises:
            NonFiniteLossError: If a loss is not finite; it names the first such step.
        """
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is None:
            return
        self._losses.append(loss.detach())
        self._rates.append(max(group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups))
        cheap = loss.device.type == "cpu" and trainer.world_size == 1
        if cheap or len(self._losses) == WINDOW or batch_idx + 1 == trainer.num_training_batches:
            self._check(trainer, batch_idx)
            self._losses, self._rates = [], []

    def _check(self, trainer: L.Trainer, batch_idx: int) -> None:
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
        problem = f"{value}" if not math.isfinite(value) else "not finite on another rank"
        batches, accumulated = int(trainer.num_training_batches), trainer.accumulate_grad_batches
        step = trainer.current_epoch * -(-batches // accumulated) + number // accumulated
        raise NonFiniteLossError(
            f"the training loss is {problem} in step {step} (epoch {trainer.current_epoch}, batch {number}, "
            f"counted from 0) with rate {self._rates[first]:.3g}: lower optimizer.lr, "
            "set trainer.gradient_clip, or train with trainer.precision=32-true"
        )
