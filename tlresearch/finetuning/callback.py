"""The Lightning callback of the freeze schedule: it enters phases, sets rates and checks that frozen weights stay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from tlresearch.backbones.weights import Loadable, load_tensors
from tlresearch.base.errors import ConfigError
from tlresearch.data.seeding import seed_all
from tlresearch.finetuning import param_groups
from tlresearch.finetuning.parts import Parts, find_parts
from tlresearch.finetuning.schedule import FreezeSchedule, Metrics, Phase, Plateau, Position
from tlresearch.finetuning.sharding import whole
from tlresearch.finetuning.torch_course import TorchCourse

log = logging.getLogger(__name__)


@runtime_checkable
class Gathering(Protocol):
    """A module that collects the metrics of an epoch itself, and knows which tensors training can change."""

    def finish_epoch(self) -> dict[str, float]:
        """Returns the metrics of the epoch that ended."""

    def changing_state(self) -> dict[str, Tensor]:
        """Returns the tensors that training can change."""


class FrozenWeightsMovedError(RuntimeError):
    """Parameters or buffers of a frozen stage changed during a phase: a bug, for which the run must stop."""


class RunPrunedError(Exception):
    """Raised by a listener to end an unpromising run; the run counts as pruned, not as failed."""


@dataclass
class BestWeights:
    """A copy of the changing weights at the best epoch of a metric."""

    rule: Plateau
    value: float | None = None
    epoch: int | None = None
    tensors: dict[str, Tensor] | None = None

    def offer(self, epoch: int, metrics: Metrics, weights: Mapping[str, Tensor]) -> None:
        """Copies the weights if this epoch is the best so far."""
        if self.rule.metric not in metrics:
            raise ConfigError([f"'{self.rule.metric}' is not recorded; recorded: {', '.join(sorted(metrics))}"])
        value = metrics[self.rule.metric]
        if self.rule.improves(value, self.value):
            self.value, self.epoch = value, epoch
            self.tensors = {name: tensor.detach().clone() for name, tensor in weights.items()}

    def restore(self, task: Loadable) -> None:
        """Puts the best weights back."""
        if self.tensors is not None:
            # Frozen stages did not change, and have no copy.
            load_tensors(task, self.tensors, f"the weights of epoch {self.epoch}", required=())


@dataclass(frozen=True)
class EpochReport:
    """The report that listeners get after each epoch.

    Attributes:
        epoch: Number of the epoch that ended, 0 first.
        metrics: Its metrics, such as ``val/accuracy``.
        phase: The phase of the epoch; `phase_start`: the phase's first epoch.
        rates: Rate of each stage and, last, the head at the epoch's end; 0 if frozen.
        trainable: Number of trained parameters of each stage and, last, the head.
        phase_end: Why the phase ended with this epoch; empty if it goes on.
        gradients: Norm of the gradient of each stage and, last, the head in the epoch's last step, after clipping; 0
            if frozen.
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
    """Runs a freeze schedule over a module with one optimizer.

    Before the first step the groups of the optimizer are split by stage, once. A phase changes rates, modes and
    ``requires_grad``, never a group. When training ends, ``requires_grad`` and modes are restored.

    Args:
        schedule: The phases; ``None`` if `find_parts` sets them.
        seed: Seed of order, dropout and the like. The random numbers of an epoch and a step depend only on seed, epoch
            and step, so that a resumed run draws the same numbers.
        select: Rule for the best epoch of the whole run; ``None`` keeps the last weights.
        early_stopping: Rule that ends the run early.
        listeners: Called in order after each epoch. A listener that raises ends the run.
        on_phase: Called when a phase begins, with frozen stages in eval mode, to move the data to the boundary.
        weights: Returns the weights that validation uses, if these are an average of the trained weights.
    """

    schedule: FreezeSchedule

    def __init__(
        self,
        schedule: FreezeSchedule | None,
        *,
        seed: int,
        select: Plateau | None = None,
        early_stopping: Plateau | None = None,
        listeners: Sequence[Listener] = (),
        on_phase: Callable[[Phase], None] = lambda phase: None,
        weights: Callable[[], Mapping[str, Tensor]] | None = None,
    ) -> None:
        if schedule is not None:
            self.schedule = schedule
        self.seed = seed
        self.history: list[dict[str, float]] = []
        self.best = BestWeights(select) if select else None
        self.listeners = tuple(listeners)
        self.on_phase = on_phase
        self.weights = weights
        self._whole_run = _early_stopping_schedule(schedule, early_stopping) if schedule and early_stopping else None
        self._phase_best: BestWeights | None = None
        self._digests: dict[str, str] = {}
        self._entered = -1
        self._restored: dict[str, Any] | None = None
        self._own: list[dict[str, Any]] = []
        self._parts: Parts | None = None
        self._initial: tuple[list[tuple[torch.nn.Parameter, bool]], list[tuple[torch.nn.Module, bool]]] = ([], [])
        self._batches = 1
        self._gradients: tuple[float, ...] = ()

    @property
    def parts(self) -> Parts:
        """The stages and the head; not available before training begins."""
        assert self._parts is not None
        return self._parts

    @property
    def position(self) -> Position:
        """The phase and epoch that come next, computed from the history."""
        return self.schedule.position(self.history)

    @property
    def finished(self) -> bool:
        """Whether the schedule, or early stopping, has ended the run."""
        stopped = self._whole_run is not None and self._whole_run.position(self.history).phase > 0
        return stopped or self.position.phase == len(self.schedule.phases)

    def restore_selected(self, module: torch.nn.Module) -> None:
        """Loads the selected weights into the module: those of the best epoch, else the average, else the last."""
        if self.best is not None:
            self.best.restore(module)
        elif self.weights is not None:
            # Frozen stages did not change.
            load_tensors(module, self.weights(), "the result of training", required=())

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that a resumed run needs, in plain containers and tensors."""
        return {
            "history": self.history,
            "entered": self._entered,
            "digests": self._digests,
            "best": _pack(self.best),
            "phase_best": _pack(self._phase_best),
        }

    def lacking(self, state: Mapping[str, Any]) -> list[str]:
        """What the state in a checkpoint of another version does not have, and a resumed run needs."""
        return sorted(self.state_dict().keys() - state.keys())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            ConfigError: If the state is of another version of tlresearch.
        """
        if lacking := self.lacking(state):
            raise ConfigError(
                [
                    f"ckpt_path: the checkpoint lacks {', '.join(lacking)}, so it is of another version of tlresearch; "
                    "go on with that version, or load the checkpoint's weights into the module and train anew"
                ],
                "FreezeSchedule",
            )
        self.history = state["history"]
        self._digests = state["digests"]
        self._entered = state["entered"]
        _unpack(self.best, state["best"])
        self._restored = state

    def find_parts(self, trainer: L.Trainer, module: L.LightningModule) -> Parts:
        """Finds the stages and the head; called once before training, when the optimizer has been made."""
        return find_parts(module, None, None)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Splits the optimizer's groups by stage, before Lightning loads a checkpoint's moments into them.

        Raises:
            ConfigError: If there is not one optimizer, or it lacks parameters.
        """
        self._parts = self.find_parts(trainer, pl_module)
        self._gradients = (0.0,) * len(self._parts.names)
        self._initial = (
            [(parameter, parameter.requires_grad) for parameter in pl_module.parameters()],
            [(layer, layer.training) for layer in pl_module.modules()],
        )
        self._regroup(trainer, pl_module)

    def _regroup(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        param_groups.regroup(only_optimizer(trainer, pl_module), self.parts, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enters the phase that follows from the history: the first, or the phase of a resumed run with its digests."""
        if self.finished:
            trainer.should_stop = True
            return
        self._batches = max(1, int(trainer.num_training_batches))
        if isinstance(self.schedule.course, TorchCourse):
            self.schedule = replace(self.schedule, course=self.schedule.course.of(self._batches))
        resumed = self._restored is not None and self._entered == self.position.phase
        self._enter_phase(trainer, pl_module, resumed=resumed)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sets train and eval modes again, which Lightning and evaluation may have changed."""
        self._apply_modes()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Makes norm statistics equal on all ranks; each rank computed them from its own share of the batches."""
        if trainer.world_size > 1 and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            param_groups.synchronise_buffers(self.parts)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sets the modes again after evaluation."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not self.finished:
            self._apply_modes()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds the step and sets the rate of each group."""
        if batch_idx == 0:
            self._apply_modes()  # the module's own hook at the start of the epoch may have changed them
        # The factors are primes: different seeds, epochs, steps and ranks give different numbers.
        step = len(self.history) * 1_000_003 + batch_idx
        seed_all((self.seed * 1_000_033 + step) * 1_009 + trainer.global_rank)
        here = self.position
        epoch = len(self.history) + batch_idx / self._batches
        rates = self.schedule.rates(here.phase, here.starts, epoch)
        decay = self.schedule.phases[here.phase].weight_decay
        for optimizer in trainer.optimizers:
            param_groups.apply_rates(_plain(optimizer), rates, decay, self._own)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures the gradients of the epoch's last step, before Lightning drops them."""
        if batch_idx + 1 == self._batches:
            self._gradients = tuple(_gradient_norm(module) for module in self.parts.modules)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the epoch's metrics to the history, and ends the phase or the run if the schedule says so."""
        if trainer.world_size > 1:
            param_groups.synchronise_buffers(self.parts)
        self._end_epoch(trainer, pl_module, self._epoch_metrics(trainer, pl_module))

    def _end_epoch(self, trainer: L.Trainer, pl_module: L.LightningModule, metrics: dict[str, float]) -> None:
        epoch, previous = len(self.history), self.position
        phase = self.schedule.phases[previous.phase]
        rates = param_groups.stage_rates(_plain(trainer.optimizers[0]), len(self.parts.names))
        trainable = tuple(_trainable(module) for module in self.parts.modules)
        self.history.append(metrics)
        # Before a phase ends: its best weights include this epoch's, and `_leave_phase` may restore earlier ones.
        for keeper in (self.best, self._phase_best):
            if keeper is not None:
                keeper.offer(epoch, metrics, self.weights() if self.weights else _changing(pl_module))
        here = self.position
        if here.phase != previous.phase:
            self._leave_phase(pl_module, phase, here)
        reason = here.reason if here.phase != previous.phase else ""
        report = EpochReport(epoch, metrics, phase, previous.starts[-1], rates, trainable, reason, self._gradients)
        self._notify(trainer, report)
        if self.finished:
            trainer.should_stop = True
        elif here.phase != previous.phase:
            self._enter_phase(trainer, pl_module, resumed=False)

    def evaluated(self, trainer: L.Trainer, module: L.LightningModule, metrics: dict[str, float]) -> None:
        """Takes the metrics of a network of which nothing is trained, as those of the only epoch."""
        self.history = [metrics]
        if self.best is not None:
            self.best.offer(0, metrics, _changing(module))
        groups = len(self.schedule.stage_names) + 1
        nothing = (0.0,) * groups
        self._notify(trainer, EpochReport(0, metrics, self.schedule.phases[0], 0, nothing, (0,) * groups, "", nothing))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warns of phases that were not reached, if something other than the schedule ended the run."""
        here = self.position
        missed = self.schedule.phases[here.phase + (here.epoch > here.starts[-1]) :]
        if missed:
            log.warning("training ended before these phases were reached: %s", ", ".join(p.name for p in missed))

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restores the module's modes and ``requires_grad``."""
        self._restore_flags()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restores the module's modes and ``requires_grad`` after an error, too."""
        self._restore_flags()

    def _restore_flags(self) -> None:
        for parameter, requires_grad in self._initial[0]:
            parameter.requires_grad_(requires_grad)
        for layer, training in self._initial[1]:
            layer.training = training
        self._initial = ([], [])

    def _epoch_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
        if isinstance(module, Gathering):
            return module.finish_epoch()
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        # Each rank may have logged other values, but a phase must end on all ranks at the same time.
        return trainer.strategy.broadcast(metrics) if trainer.world_size > 1 else metrics

    def _notify(self, trainer: L.Trainer, report: EpochReport) -> None:
        """Calls the listeners. If a listener of rank 0 prunes the run, all ranks stop at the same time."""
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

    def _new_phase_best(self) -> BestWeights | None:
        phase = self.schedule.phases[self.position.phase]
        return BestWeights(phase.until) if phase.until and phase.at_end == "restore_best" else None

    def _enter_phase(self, trainer: L.Trainer, module: L.LightningModule, *, resumed: bool) -> None:
        self._entered = self.position.phase
        phase = self.schedule.phases[self._entered]
        trained = param_groups.apply_phase(phase, self.parts)
        self._apply_modes()
        self._phase_best = self._new_phase_best()
        if resumed:
            # The digests are those of the process that began the phase, so weights that changed in between are noticed.
            assert self._restored is not None
            _unpack(self._phase_best, self._restored["phase_best"])
            self._check_frozen(phase)
        else:
            if phase.optimizer_state == "reset":
                for optimizer in trainer.optimizers:
                    param_groups.reset_state(_plain(optimizer))
            self._digests = param_groups.digests(param_groups.frozen_tensors(phase, self.parts))
        self.on_phase(phase)
        _rewrap(trainer, module)  # after `requires_grad` is set, which DDP reads when it wraps
        log.info("epoch %d: phase '%s' trains %s parameters", len(self.history), phase.name, f"{trained:,}")

    def _leave_phase(self, module: L.LightningModule, phase: Phase, here: Position) -> None:
        self._check_frozen(phase)
        if self._phase_best is not None:
            self._phase_best.restore(module)
        log.info("epoch %d: phase '%s' ends: %s", here.epoch - 1, phase.name, here.reason)

    def _check_frozen(self, phase: Phase) -> None:
        # With the modes of this phase: they decide which buffers count as frozen.
        param_groups.apply_modes(phase, self.parts)
        now = param_groups.digests(param_groups.frozen_tensors(phase, self.parts))
        moved = [name for name, digest in self._digests.items() if now.get(name) != digest]
        if moved or now.keys() != self._digests.keys():
            names = ", ".join(moved[:5] or sorted(now.keys() ^ self._digests.keys())[:5])
            raise FrozenWeightsMovedError(f"phase '{phase.name}' moved {len(moved)} frozen tensors: {names}")

    def _apply_modes(self) -> None:
        last = len(self.schedule.phases) - 1
        phase = self.schedule.phases[min(self.position.phase, last)]
        param_groups.apply_modes(phase, self.parts)


def _pack(best: BestWeights | None) -> dict[str, Any] | None:
    """Returns the state for a checkpoint, in plain containers and tensors."""
    return None if best is None else {"value": best.value, "epoch": best.epoch, "tensors": best.tensors}


def _unpack(best: BestWeights | None, state: dict[str, Any] | None) -> None:
    """Restores the state that `_pack` returned."""
    if best is not None and state is not None:
        best.value, best.epoch, best.tensors = state["value"], state["epoch"], state["tensors"]


def _changing(module: L.LightningModule) -> Mapping[str, Tensor]:
    return module.changing_state() if isinstance(module, Gathering) else module.state_dict()


def only_optimizer(trainer: L.Trainer, module: L.LightningModule) -> Optimizer:
    """Returns the optimizer of a module.

    Raises:
        ConfigError: If there is none, or more than one.
    """
    count = len(trainer.optimizers)
    if count != 1:
        raise ConfigError(
            [f"configure_optimizers: a freeze schedule needs one optimizer, but {type(module).__name__} has {count}"],
            "FreezeSchedule",
        )
    return _plain(trainer.optimizers[0])


def callback_problems(callbacks: Sequence[L.Callback]) -> Iterator[str]:
    """Yields which callbacks do what a freeze schedule does, or undo it."""
    for callback in callbacks:
        if isinstance(callback, StochasticWeightAveraging):
            yield (
                "StochasticWeightAveraging: it sets its own rates, averages over phases and moves the statistics of "
                "frozen norm layers; leave it out"
            )
        if isinstance(callback, BaseFinetuning):
            yield f"{type(callback).__name__}: it freezes and unfreezes too; keep one of the two"


def _plain(optimizer: Any) -> Optimizer:
    """Returns the torch optimizer inside Lightning's wrapper."""
    inner = getattr(optimizer, "optimizer", optimizer)
    assert isinstance(inner, Optimizer)
    return inner


def _trainable(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _gradient_norm(module: torch.nn.Module) -> float:
    norms = [whole(p.grad.float().norm()) for p in module.parameters() if p.requires_grad and p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _rewrap(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Wraps the module in DistributedDataParallel again, so that gradients of unfrozen parameters are synchronised.

    DDP registers gradient hooks when it wraps, for the parameters that need a gradient then. It silently leaves out
    parameters that are unfrozen later.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and isinstance(strategy.model, DistributedDataParallel):
        strategy.model = module
        strategy.configure_ddp()


def _early_stopping_schedule(schedule: FreezeSchedule, rule: Plateau) -> FreezeSchedule:
    """Expresses early stopping as a schedule with one phase over the whole run, so that the same replay decides it."""
    rates = (0.0,) * (len(schedule.stage_names) + 1)
    phase = Phase("run", stages=(), rates=rates, epochs=schedule.max_epochs, until=rule)
    return FreezeSchedule((phase,), schedule.stage_names)
