"""Any scheduler of torch as the course of a phase: it steps ahead on one rate, and what that becomes is the factor."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tlresearch.base.errors import ConfigError
from tlresearch.config.parts import make
from tlresearch.config.schema import SchedulerConfig


@dataclass(frozen=True)
class TorchCourse:
    """The rates of a torch scheduler over a phase, as shares of the base rate.

    The scheduler is given an optimizer with one rate, `optimizer.lr`, so that what it is told in rates (`max_lr`,
    `eta_min`) is about the head; the other stages move in proportion. It begins anew in each phase, knows its length,
    and is computed from that alone: a resumed run has the same rates without a state. What it moves besides rates
    (momentum) is of no effect.

    Attributes:
        config: The `scheduler` section.
        lr: The base rate.
        batches: Batches of an epoch, for a scheduler that steps with each.
    """

    config: SchedulerConfig
    lr: float
    batches: int = 1
    _curves: dict[int, list[float]] = field(default_factory=dict, compare=False)

    def of(self, batches: int) -> TorchCourse:
        """Returns the course for epochs of so many batches."""
        return replace(self, batches=batches, _curves={}) if self.config.interval == "batch" else self

    def factor(self, elapsed: float, horizon: float) -> float:
        """Returns the factor on the base rate after `elapsed` of `horizon` epochs."""
        steps = max(1, round(horizon * self.batches))
        if steps not in self._curves:
            self._curves[steps] = self._factors(steps)
        return self._curves[steps][min(int(elapsed * self.batches + 1e-6), steps - 1)]

    def _factors(self, steps: int) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=self.lr, momentum=0.9)
        lengths: dict[str, Any] = {"total_steps": steps, "T_max": steps, "max_lr": self.lr}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no parameter has a gradient; that SequentialLR steps by number
            scheduler = make(self.config, "scheduler", optimizer, optimizer=optimizer, **lengths)
            self._check(scheduler)
            factors = []
            for _ in range(steps):
                factors.append(optimizer.param_groups[0]["lr"] / self.lr)
                optimizer.step()
                if len(factors) < steps:
                    scheduler.step()
        return factors

    def _check(self, scheduler: Any) -> None:
        name = self.config.name
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ConfigError(
                [f"scheduler.name: {name} follows a metric; end a phase with `until`, and give the next one its lr"],
                name,
            )
        if not isinstance(scheduler, LRScheduler):
            raise ConfigError(
                [f"scheduler.name: {name} must give a scheduler of torch, but gave {type(scheduler).__name__}"], name
            )
