"""The freeze schedule as pure data: from phases and the history of metrics it computes which stages train at what rate.

No torch here: a schedule can be printed, tested and replayed without a network. Stages are numbered from the input,
beginning with 0; an unfreeze depth counts them from the head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tlresearch.base.errors import ConfigError
from tlresearch.config.courses import Constant, Course

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Plateau:
    """Ends a phase when `metric` has not improved by more than `min_delta` for `patience` epochs."""

    metric: str
    patience: int
    min_delta: float = 0.0
    mode: Literal["min", "max"] = "min"

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` beats `best`. NaN never does."""
        if math.isnan(value):
            return False
        if best is None:
            return True
        return value < best - self.min_delta if self.mode == "min" else value > best + self.min_delta


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of trained parameters and their rates.

    Attributes:
        name: Name in tables and plots.
        stages: Numbers of the stages trained, 0 nearest the input.
        patterns: If not empty, only parameters in `stages` that match a pattern are trained.
        head: Whether the head is trained.
        epochs: Length in epochs; with `until` the maximal length.
        rates: Base rate of each stage and, last, of the head, whether trained or not.
        weight_decay: Weight decay of all parameters that decay; ``None`` keeps the value of each parameter group.
        until: Rule that ends the phase early.
        at_end: Weights that the next phase starts from: the last, or the best of the phase.
        warmup_epochs: Length of the linear warm-up in epochs.
        rate: Whether the course of the rate restarts, or continues that of the previous phase.
        optimizer_state: Whether the optimizer keeps its moments when the phase begins.
        frozen_norm: Mode of norm layers in frozen stages.
    """

    name: str
    stages: tuple[int, ...]
    rates: tuple[float, ...]
    epochs: int
    patterns: tuple[str, ...] = ()
    head: bool = True
    weight_decay: float | None = 0.0
    until: Plateau | None = None
    at_end: Literal["keep", "restore_best"] = "keep"
    warmup_epochs: float = 0.0
    rate: Literal["restart", "continue"] = "restart"
    optimizer_state: Literal["keep", "reset"] = "keep"
    frozen_norm: Literal["eval", "train"] = "eval"

    @property
    def boundary(self) -> int:
        """Number of stages in front of the first trained one: the frozen prefix ends here."""
        return min(self.stages, default=len(self.rates) - 1)

    def trains(self, group: int) -> bool:
        """Whether anything in stage `group` is trained; the head is the number of stages."""
        return self.head if group == len(self.rates) - 1 else group in self.stages


@dataclass(frozen=True)
class Position:
    """The position of a run in its schedule after the epochs of a history.

    Attributes:
        epoch: Number of finished epochs: the number of the epoch that comes next.
        phase: Index of the phase that comes next; the number of phases once the schedule has ended.
        starts: First epoch of each phase that has begun.
        best_epoch: Best epoch by the `until` metric of the phase that the last epoch belongs to, if it has one.
        reason: Why the last epoch ended its phase, or an empty text if it did not.
    """

    epoch: int
    phase: int
    starts: tuple[int, ...]
    best_epoch: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class FreezeSchedule:
    """The phases of a run over a backbone's stages.

    Attributes:
        phases: In order; at least one.
        stage_names: Names of the backbone's stages, 0 nearest the input.
        course: How the rate moves within each phase.
    """

    phases: tuple[Phase, ...]
    stage_names: tuple[str, ...]
    course: Course = field(default_factory=Constant)

    def __post_init__(self) -> None:
        """Checks that the phases fit the stages."""
        problems = []
        if not self.phases:
            problems.append("freeze.phases: a schedule needs at least one phase")
        for phase in self.phases:
            if len(phase.rates) != len(self.stage_names) + 1:
                problems.append(f"phase '{phase.name}': needs a rate for each stage and the head")
            if self.trains and not phase.head and not phase.stages:
                problems.append(f"phase '{phase.name}': trains nothing")
        if problems:
            raise ConfigError(problems, "freeze schedule")

    @property
    def trains(self) -> bool:
        """Whether there is an epoch of training; if not, the network is evaluated as it is."""
        return self.max_epochs > 0

    @property
    def max_epochs(self) -> int:
        """Length in epochs if no phase ends early."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def starts(self) -> tuple[int, ...]:
        """First epoch of each phase if none ends early."""
        return tuple(sum(phase.epochs for phase in self.phases[:index]) for index in range(len(self.phases)))

    @property
    def changing_stages(self) -> frozenset[int]:
        """Stages whose parameters or buffers any phase can change."""
        everything = range(len(self.stage_names))
        if any(phase.frozen_norm == "train" for phase in self.phases):
            return frozenset(everything)
        return frozenset(stage for phase in self.phases for stage in phase.stages)

    @property
    def adapters(self) -> bool:
        """Whether any phase trains low-rank adapters, which the backbone then needs."""
        return any("@lora" in phase.patterns for phase in self.phases)

    def position(self, history: Sequence[Metrics]) -> Position:
        """Replays a history and returns the position after it; the same history always gives the same position.

        Args:
            history: The metrics of each finished epoch.

        Raises:
            ConfigError: If a phase waits for a metric that was not recorded.
        """
        phase, starts, reason = 0, [0], ""
        best: float | None = None
        best_epoch: int | None = None
        for epoch, metrics in enumerate(history):
            if phase == len(self.phases):
                break
            if reason:  # the previous epoch ended a phase: the next one starts with no best value
                best, best_epoch, reason = None, None, ""
            now = self.phases[phase]
            if now.until is not None:
                value = _value(now, metrics)
                if now.until.improves(value, best):
                    best, best_epoch = value, epoch
                # With NaN from the start there is no best epoch: every epoch of the phase counts as waiting.
                waited = epoch - best_epoch if best_epoch is not None else epoch + 1 - starts[-1]
                if waited >= now.until.patience:
                    reason = f"{now.until.metric} has not improved for {waited} epochs"
            if not reason and epoch + 1 - starts[-1] >= now.epochs:
                reason = f"{now.epochs} epochs"
            if reason:
                phase += 1
                starts.append(epoch + 1)
        return Position(len(history), phase, tuple(starts), best_epoch, reason)

    def factor(self, phase: int, starts: Sequence[int], epoch: float) -> float:
        """Returns the factor on every base rate at a moment of a phase.

        Args:
            phase: Index of the phase.
            starts: First epoch of each phase up to this one.
            epoch: Epochs since the run began, with a fraction within the epoch.
        """
        # Phases with `continue` share one course, which starts at the anchor. Phases before this one count with the
        # length they really had, this and later ones with their planned length.
        anchor = phase
        while anchor > 0 and self.phases[anchor].rate == "continue":
            anchor -= 1
        last = phase + 1
        while last < len(self.phases) and self.phases[last].rate == "continue":
            last += 1
        warmup = self.phases[anchor].warmup_epochs
        horizon = starts[phase] - starts[anchor] + sum(p.epochs for p in self.phases[phase:last]) - warmup
        factor = self.course.factor(max(0.0, epoch - starts[anchor] - warmup), horizon)
        own_warmup, within = self.phases[phase].warmup_epochs, epoch - starts[phase]
        return factor * (within / own_warmup if within < own_warmup else 1.0)

    def parts_with(self, longer: FreezeSchedule, history: Sequence[Metrics]) -> int | None:
        """Returns the first epoch of a history in which another, longer schedule trains differently; ``None`` if none.

        Different lengths make no difference, as long as neither a rate nor the end of a phase depends on them.
        """
        for epoch in range(len(history)):
            here, there = self.position(history[:epoch]), longer.position(history[:epoch])
            states = [
                (replace(schedule.phases[at.phase], epochs=1, name=""), at.phase, at.starts)
                for schedule, at in ((self, here), (longer, there))
            ]
            if states[0] != states[1] or any(
                self.rates(here.phase, here.starts, epoch + moment)
                != longer.rates(here.phase, here.starts, epoch + moment)
                for moment in _MOMENTS
            ):
                return epoch
        # At the end of a phase its best weights may be restored, which the longer schedule does not do here.
        ended, continued = self.position(history), longer.position(history)
        last = self.phases[min(ended.phase, len(self.phases)) - 1]
        if last.at_end == "restore_best" and ended.starts != continued.starts:
            return len(history) - 1
        return None

    def rates(self, phase: int, starts: Sequence[int], epoch: float) -> tuple[float, ...]:
        """Returns the rate of each stage and, last, the head; 0 where frozen. Arguments as in `factor`."""
        factor, now = self.factor(phase, starts, epoch), self.phases[phase]
        return tuple(rate * factor if now.trains(group) else 0.0 for group, rate in enumerate(now.rates))


_MOMENTS = (0.0, 0.25, 0.5, 0.75, 1.0 - 1e-6)
"""Moments of an epoch at which rates are compared: courses are smooth within an epoch, so a few suffice."""


def _value(phase: Phase, metrics: Metrics) -> float:
    assert phase.until is not None
    metric = phase.until.metric
    if metric not in metrics:
        recorded = ", ".join(sorted(metrics))
        raise ConfigError([f"phase '{phase.name}': until.metric '{metric}' is not recorded; recorded: {recorded}"])
    return metrics[metric]
