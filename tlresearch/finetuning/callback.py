"""The freeze schedule at work: a Lightning callback that enters phases, sets rates and guards what is frozen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from tlresearch.backbones.base import StagedBackbone
from tlresearch.backbones.weights import load_tensors
from tlresearch.data.seeding import seed_all
from tlresearch.finetuning import param_groups
from tlresearch.finetuning.best import BestWeights, pack, unpack
from tlresearch.finetuning.schedule import FreezeSchedule, Metrics, Phase, Plateau, Position
from tlresearch.finetuning.sharding import whole

log = logging.getLogger(__name__)


class Tunable(Protocol):
    """What the schedule needs of a task."""

    backbone: StagedBackbone
    head: nn.Module

    def finish_epoch(self) -> dict[str, float]:
        """Returns the metrics of the epoch that ended."""

    def changing_state(self) -> dict[str, Tensor]:
        """Returns the tensors that training can change."""

    def state_dict(self) -> dict[str, Any]:
        """Returns all its tensors."""

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True) -> Any:
        """Puts tensors back."""


class FrozenWeightsMovedError(RuntimeError):
    """Parameters or buffers of a frozen stage changed during a phase: a bug, and reason to stop the run."""


class RunPrunedError(Exception):
    """Raised by a listener to end a run that is not worth going on with; the run counts as pruned, not failed."""


@dataclass(frozen=True)
class EpochReport:
    """What listeners are told after each epoch.

    Attributes:
        epoch: Number of the epoch that ended, 0 first.
        metrics: Its metrics, such as ``val/accuracy``.
        phase: The phase it belonged to; `phase_start`: that phase's first epoch.
        rates: Rate of each stage and, last, the head at the epoch's end; 0 where frozen.
        trainable: Trained parameters of each stage and, last, the head.
        phase_end: Why the phase ended with this epoch; empty if it goes on.
        gradients: Norm of the gradient of each stage and, last, the head in the epoch's last step, after clipping; 0
            where frozen.
    """

    epoch: int
    metrics: Metrics
    phase: Phase
    phase_start: int
    rates: tuple[float, ...]
    trainable: tuple[int, ...]
    phase_end: str
    gradients: tuple[float, ...]


Listener = Callable[[EpochReport], None]


class FreezeScheduleCallback(L.Callback):
    """Runs a freeze schedule over a task.

    Args:
        schedule: The phases.
        seed: Seed of dropout and the like; each step's random numbers are a function of it and the step alone,
            so that a resumed run draws the same ones.
        select: Rule for the best epoch of the whole run; ``None`` keeps the last weights.
        early_stopping: Ends the run early.
        listeners: Called in order after each epoch. One that raises ends the run.
        on_phase: Called when a phase begins, with frozen stages in eval mode: where the data moves to its boundary.
        weights: Returns the weights that validation saw, where they are not the trained ones but their average.
    """

    def __init__(
        self,
        schedule: FreezeSchedule,
        *,
        seed: int,
        select: Plateau | None = None,
        early_stopping: Plateau | None = None,
        listeners: Sequence[Listener] = (),
        on_phase: Callable[[Phase], None] = lambda phase: None,
        weights: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.schedule = schedule
        self.seed = seed
        self.history: list[dict[str, float]] = []
        self.best = BestWeights(select) if select else None
        self.listeners = tuple(listeners)
        self.on_phase = on_phase
        self.weights = weights
        self._whole_run = _early_stopping_schedule(schedule, early_stopping)
        self._phase_best: BestWeights | None = None
        self._digests: dict[str, str] = {}
        self._batches = 1
        self._gradients = (0.0,) * (len(schedule.stage_names) + 1)

    @property
    def position(self) -> Position:
        """Where the run stands."""
        return self.schedule.position(self.history)

    @property
    def finished(self) -> bool:
        """Whether the schedule, or early stopping, has ended the run."""
        stopped = self._whole_run is not None and self._whole_run.position(self.history).phase > 0
        return stopped or self.position.phase == len(self.schedule.phases)

    def restore_selected(self, task: Tunable) -> None:
        """Puts the weights in place that the run has come to: the best, else the average, else the last."""
        if self.best is not None:
            self.best.restore(task)
        elif self.weights is not None:
            # Frozen stages are as they were.
            load_tensors(task, self.weights(), "the result of training", required=())

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; plain containers and tensors only."""
        return {
            "history": self.history,
            "digests": self._digests,
            "best": pack(self.best),
            "phase_best": pack(self._phase_best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.history = state["history"]
        self._digests = state["digests"]
        unpack(self.best, state["best"])
        if not self.finished:
            self._phase_best = self._new_phase_best()
            unpack(self._phase_best, state["phase_best"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enters the phase the history leads to: the first, or a resumed one with its digests."""
        if self.finished:
            trainer.should_stop = True
            return
        self._batches = max(1, int(trainer.num_training_batches))
        self._enter_phase(trainer, _task(pl_module), resumed=self._digests if self._mid_phase() else None)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sets the modes, which Lightning and evaluation may have changed."""
        self._apply_modes(_task(pl_module))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Makes the ranks agree on norm statistics, which each has taken from its own share of the batches."""
        if trainer.world_size > 1 and trainer.state.fn == TrainerFn.FITTING:
            task = _task(pl_module)
            param_groups.synchronise_buffers(task.backbone, task.head)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sets the modes again after evaluation."""
        if trainer.state.fn == TrainerFn.FITTING and not self.finished:
            self._apply_modes(_task(pl_module))

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds the step and sets the rate of each group."""
        step = len(self.history) * 1_000_003 + batch_idx
        seed_all((self.seed * 1_000_033 + step) * 1_009 + trainer.global_rank)
        here = self.position
        epoch = len(self.history) + batch_idx / self._batches
        rates = self.schedule.rates(here.phase, here.starts, epoch)
        for optimizer in trainer.optimizers:
            param_groups.apply_rates(_plain(optimizer), rates, self.schedule.phases[here.phase].weight_decay)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures the gradients of the epoch's last step, which Lightning drops before it validates."""
        if batch_idx + 1 == self._batches:
            task = _task(pl_module)
            self._gradients = tuple(_gradient_norm(m) for _, m in param_groups.parts(task.backbone, task.head))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the epoch's metrics into the history, and ends the phase or the run if it is time."""
        task = _task(pl_module)
        if trainer.world_size > 1:
            param_groups.synchronise_buffers(task.backbone, task.head)
        metrics, epoch, before = task.finish_epoch(), len(self.history), self.position
        phase = self.schedule.phases[before.phase]
        rates = self.schedule.rates(before.phase, before.starts, epoch + 1 - 1 / self._batches)
        trainable = tuple(_trainable(module) for _, module in param_groups.parts(task.backbone, task.head))
        self.history.append(metrics)
        for keeper in (self.best, self._phase_best):
            if keeper is not None:
                keeper.offer(epoch, metrics, self.weights() if self.weights else task.changing_state())
        here = self.position
        if here.phase != before.phase:
            self._leave_phase(task, phase, here)
        reason = here.reason if here.phase != before.phase else ""
        report = EpochReport(epoch, metrics, phase, before.starts[-1], rates, trainable, reason, self._gradients)
        self._tell(trainer, report)
        if self.finished:
            if here.phase < len(self.schedule.phases) - 1:
                names = ", ".join(p.name for p in self.schedule.phases[here.phase + 1 :])
                log.warning("early stopping ended the run before these phases were reached: %s", names)
            trainer.should_stop = True
        elif here.phase != before.phase:
            self._enter_phase(trainer, task, resumed=None)

    def _tell(self, trainer: L.Trainer, report: EpochReport) -> None:
        """Tells the listeners; those of rank 0 prune the run for all ranks, which must stop together."""
        pruned: RunPrunedError | None = None
        try:
            for listener in self.listeners:
                listener(report)
        except RunPrunedError as reason:
            pruned = reason
        if trainer.world_size > 1:
            pruned = trainer.strategy.broadcast(pruned)
        if pruned is not None:
            raise pruned

    def _mid_phase(self) -> bool:
        here = self.position
        return here.epoch > here.starts[-1]

    def _new_phase_best(self) -> BestWeights | None:
        phase = self.schedule.phases[self.position.phase]
        return BestWeights(phase.until) if phase.until and phase.at_end == "restore_best" else None

    def _enter_phase(self, trainer: L.Trainer, task: Tunable, *, resumed: dict[str, str] | None) -> None:
        phase = self.schedule.phases[self.position.phase]
        trained = param_groups.apply_phase(phase, task.backbone, task.head)
        self._apply_modes(task)
        if resumed is None:
            self._phase_best = self._new_phase_best()
            if phase.optimizer_state == "reset":
                for optimizer in trainer.optimizers:
                    param_groups.reset_state(_plain(optimizer))
            self._digests = param_groups.digests(param_groups.frozen_tensors(phase, task.backbone, task.head))
        else:
            self._check_frozen(task, phase)
        self.on_phase(phase)
        _rewrap(trainer, task)
        log.info("epoch %d: phase '%s' trains %s parameters", len(self.history), phase.name, f"{trained:,}")

    def _leave_phase(self, task: Tunable, phase: Phase, here: Position) -> None:
        self._check_frozen(task, phase)
        if self._phase_best is not None:
            self._phase_best.restore(task)
        log.info("epoch %d: phase '%s' ends: %s", here.epoch - 1, phase.name, here.reason)

    def _check_frozen(self, task: Tunable, phase: Phase) -> None:
        param_groups.apply_modes(phase, task.backbone, task.head)  # the next phase's may let more of them move
        now = param_groups.digests(param_groups.frozen_tensors(phase, task.backbone, task.head))
        moved = [name for name, digest in self._digests.items() if now.get(name) != digest]
        if moved or now.keys() != self._digests.keys():
            names = ", ".join(moved[:5] or sorted(now.keys() ^ self._digests.keys())[:5])
            raise FrozenWeightsMovedError(f"phase '{phase.name}' moved {len(moved)} frozen tensors: {names}")

    def _apply_modes(self, task: Tunable) -> None:
        last = len(self.schedule.phases) - 1
        phase = self.schedule.phases[min(self.position.phase, last)]
        param_groups.apply_modes(phase, task.backbone, task.head)


def _task(module: L.LightningModule) -> Tunable:
    return cast(Tunable, module)


def _plain(optimizer: Any) -> Optimizer:
    """The torch optimizer inside Lightning's wrapper."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, Optimizer)
    return inner


def _trainable(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _gradient_norm(module: torch.nn.Module) -> float:
    found = [whole(p.grad.float().norm()) for p in module.parameters() if p.requires_grad and p.grad is not None]
    return float(torch.stack(found).norm()) if found else 0.0


def _rewrap(trainer: L.Trainer, task: Tunable) -> None:
    """Wraps the task in DistributedDataParallel anew, so that what was unfrozen is synchronised.

    DDP registers its gradient hooks for the parameters that need a gradient when it wraps; those unfrozen later
    are silently left out.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = cast(L.LightningModule, task)
        strategy.configure_ddp()


def _early_stopping_schedule(schedule: FreezeSchedule, rule: Plateau | None) -> FreezeSchedule | None:
    """Early stopping is the schedule of one phase that spans the run: the same replay decides both."""
    if rule is None:
        return None
    rates = (0.0,) * (len(schedule.stage_names) + 1)
    phase = Phase("run", stages=(), rates=rates, epochs=schedule.max_epochs, until=rule)
    return FreezeSchedule((phase,), schedule.stage_names)
