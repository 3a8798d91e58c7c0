"""A freeze schedule for any LightningModule under a plain ``Trainer``: ``tlresearch.FreezeSchedule``.

It adds to `FreezeScheduleCallback` what somebody else's project needs: stages are found by name, a scheduler of the
module's keeps setting the course of its rates, and order and randomness are seeded so that a run resumed from
Lightning's own checkpoint ends as the unbroken one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import LBFGS
from torch.optim.lr_scheduler import ReduceLROnPlateau

from tlresearch.base.errors import ConfigError
from tlresearch.config.load import load_schedule
from tlresearch.data.seeding import derive_seed, seed_all
from tlresearch.finetuning import param_groups
from tlresearch.finetuning.callback import FreezeScheduleCallback, Listener, callback_problems, only_optimizer
from tlresearch.finetuning.parts import Member, Parts, Stages, find_parts
from tlresearch.finetuning.presets import build_schedule

SOURCE = "FreezeSchedule"


class FreezeSchedule(FreezeScheduleCallback):
    """Freezes and unfreezes the stages of any LightningModule by a schedule.

    The module keeps its loss, its metrics and ``configure_optimizers``, which gives one optimizer over all parameters.
    A scheduler of the module's works as before: the rate that it sets for a group of the optimizer holds for the part
    of that group in each trained stage.

    Args:
        schedule: A preset (``linear_probe``, ``full``, ``depth``, ``lp_ft``, ``gradual``, ``top_down``, ``surgical``,
            ``norm_only``, ``bias_only``), or the phases, each a mapping with the keys of ``freeze.phases`` in an
            experiment.
        stages: Names of submodules from the input to the head, patterns, submodules, or a mapping that names the
            stages; see `find_parts`.
        head: Name of the head, or several names.
        epochs: Length; ``None`` takes the trainer's ``max_epochs``.
        lr: Rate of the head. ``None`` keeps the rates of the module's optimizer, and those of its scheduler.
        layer_lr_decay: Factor of the rate per stage towards the input.
        course: How the rate moves within each phase: a name, or the keys of ``scheduler`` in an experiment.
        frozen_norm: Whether norm layers of frozen stages keep their statistics.
        seed: Seed of order, augmentation and dropout, which are functions of it, the epoch and the step.
        listeners: Called with an `EpochReport` after each epoch.
        options: Further keys of ``freeze`` in an experiment: ``unfreeze_depth`` of ``depth``, ``probe_epochs`` of
            ``lp_ft``, ``train`` of ``surgical`` (the stages that it trains).

    Raises:
        ConfigError: If the schedule is wrong; what does not fit module and trainer, when ``fit`` begins.
    """

    def __init__(
        self,
        schedule: str | Sequence[Mapping[str, Any]],
        *,
        stages: Stages | None = None,
        head: Member | Sequence[Member] | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        layer_lr_decay: float = 1.0,
        course: str | Mapping[str, Any] = "constant",
        frozen_norm: Literal["eval", "train"] = "eval",
        seed: int = 0,
        listeners: Sequence[Listener] = (),
        **options: Any,
    ) -> None:
        super().__init__(None, seed=seed, listeners=listeners)
        freeze: dict[str, Any] = {"frozen_norm": frozen_norm, **options}
        if isinstance(schedule, str):
            freeze["schedule"] = schedule
        else:
            freeze |= {"schedule": "phases", "phases": [dict(phase) for phase in schedule]}
        if "train" in freeze:
            freeze["stages"] = freeze.pop("train")
        if epochs is not None:
            freeze["epochs"] = epochs
        self.stages, self.head = stages, head
        self.settings: dict[str, Any] = {
            "freeze": freeze,
            "optimizer": {"lr": 1.0 if lr is None else lr, "layer_lr_decay": layer_lr_decay},
            "scheduler": {"name": course} if isinstance(course, str) else dict(course),
        }
        self._own_lr = lr is None
        self._seen: dict[str, float] = {}
        self._drawn: dict[str, Any] | None = None
        checked = load_schedule(self._with_epochs(freeze.get("epochs", 10**6)), SOURCE)
        named = [phase.name for phase in checked.freeze.phases if phase.lr is not None or phase.stage_lrs]
        if self._own_lr and named:
            raise ConfigError([f"lr: is needed, since phase '{named[0]}' gives rates of its own"], SOURCE)
        if checked.freeze.schedule in ("lora", "scratch"):
            cure = {
                "lora": "add adapters to the module yourself, and write phases with parameters: ['@lora']",
                "scratch": "`full` trains every stage from whatever weights the module has",
            }[checked.freeze.schedule]
            raise ConfigError(
                [f"schedule: '{checked.freeze.schedule}' is for backbones of experiments; {cure}"], SOURCE
            )

    def _with_epochs(self, epochs: int) -> dict[str, Any]:
        return {**self.settings, "freeze": {**self.settings["freeze"], "epochs": epochs}}

    def find_parts(self, trainer: L.Trainer, module: L.LightningModule) -> Parts:
        """Finds the stages, and builds the schedule over them."""
        problems = list(_trainer_problems(trainer))
        if problems:
            raise ConfigError(problems, SOURCE)
        parts = find_parts(module, self.stages, self.head)
        freeze = self.settings["freeze"]
        phases = freeze.get("phases", ())
        limit = trainer.max_epochs if trainer.max_epochs not in (None, -1) else None
        epochs = freeze.get("epochs") or limit
        if epochs is None and any("fraction" in phase for phase in phases):
            raise ConfigError(["epochs: is needed, since neither it nor the trainer's max_epochs is given"], SOURCE)
        if epochs is None and not phases:
            raise ConfigError(["epochs: is needed, since the trainer has no max_epochs"], SOURCE)
        config = load_schedule(self._with_epochs(epochs or 1), SOURCE)
        schedule = build_schedule(config, parts.names[:-1])
        decays = [phase.weight_decay for phase in config.freeze.phases] or [None] * len(schedule.phases)
        own = [replace(phase, weight_decay=decay) for phase, decay in zip(schedule.phases, decays, strict=True)]
        self.schedule = replace(schedule, phases=tuple(own))
        if limit is not None and self.schedule.max_epochs > limit and not vars(trainer).get("fast_dev_run"):
            raise ConfigError(
                [
                    f"epochs: the schedule has {self.schedule.max_epochs} epochs, but the trainer's max_epochs is "
                    f"{limit}; shorten the one or raise the other"
                ],
                SOURCE,
            )
        self._check_checkpoint(trainer, parts)
        return parts

    def _check_checkpoint(self, trainer: L.Trainer, parts: Parts) -> None:
        if self._restored is None:
            if trainer.ckpt_path is not None:
                raise ConfigError(
                    [
                        f"ckpt_path: {trainer.ckpt_path} was written without a freeze schedule, so its optimizer fits "
                        "none; load its weights into the module instead"
                    ],
                    SOURCE,
                )
        elif self._restored["stages"] != list(parts.names):
            raise ConfigError(
                [
                    f"ckpt_path: the checkpoint has the stages {', '.join(self._restored['stages'])}, but the schedule "
                    f"{', '.join(parts.names)}; give the same"
                ],
                SOURCE,
            )

    def _regroup(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        optimizer = only_optimizer(trainer, pl_module)
        if isinstance(optimizer, LBFGS):
            raise ConfigError(["configure_optimizers: LBFGS takes one parameter group; use another optimizer"], SOURCE)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        names = ", ".join(type(scheduler).__name__ for scheduler in schedulers)
        if schedulers and not self._own_lr:
            raise ConfigError(
                [f"lr: the module's scheduler ({names}) sets the rates; leave lr out, or the scheduler"], SOURCE
            )
        if any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers):
            raise ConfigError(
                [
                    "configure_optimizers: Lightning writes checkpoints before ReduceLROnPlateau steps, so a resumed "
                    "run would miss a step; end a phase with `until` instead"
                ],
                SOURCE,
            )
        own = param_groups.regroup(optimizer, self.parts, pl_module)
        if not self._own_lr:
            return
        self._own = own
        rates = type(type(optimizer).__name__, (_ModuleRates,), {})(
            own, optimizer.defaults
        )  # LearningRateMonitor's name
        for scheduler in _flat(schedulers):
            scheduler.optimizer = rates
        if self._restored is not None:
            for group, moved in zip(own, self._restored["own"], strict=True):
                group.update(moved)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seeds the epoch, whose order of samples is drawn next."""
        super().on_train_epoch_start(trainer, pl_module)
        self._seed_epoch(trainer)
        loop = trainer.fit_loop
        if trainer.current_epoch == 0 or loop.is_resuming or loop.epoch_loop.restarting:
            self._begin_data(trainer)  # else Lightning does, after this hook

    def _seed_epoch(self, trainer: L.Trainer) -> None:
        seed = derive_seed(self.seed, "epoch", len(self.history), trainer.global_rank)
        seed_all(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def _begin_data(self, trainer: L.Trainer) -> Any:
        """Draws the order anew: Lightning begins a process's first epoch of data before any hook."""
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        assert loop._combined_loader is not None
        for loader in loop._combined_loader.flattened:
            _set_sampler_epoch(loader, trainer.current_epoch)
        return iter(loop._data_fetcher)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Enters the phase; from a checkpoint of the middle of an epoch, goes on with the samples that were left."""
        super().on_train_start(trainer, pl_module)
        state, self._drawn = self._drawn, None
        if state is None or self.finished:
            return
        if trainer.current_epoch > len(self.history):
            self._end_missed_epoch(trainer, pl_module)
            return
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if 0 < done < trainer.num_training_batches:
            # Lightning goes on counting after the batches that were trained, but gives the epoch's first ones again.
            self._seed_epoch(trainer)
            fetcher = self._begin_data(trainer)
            for _ in range(done):
                next(fetcher)
            fetcher.fetched = 0  # Lightning adds the batches of before
            _set_random_state(state)

    def _end_missed_epoch(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends an epoch whose last step wrote the checkpoint: Lightning validates it no more, and calls no hook."""
        phase = self.schedule.phases[self.position.phase]
        if phase.until is not None:
            raise ConfigError(
                [
                    f"ckpt_path: {trainer.ckpt_path} was written at the last step of an epoch, before its validation, "
                    f"but phase '{phase.name}' waits for {phase.until.metric}; resume from an epoch's end"
                ],
                SOURCE,
            )
        self._end_epoch(trainer, pl_module, {})

        def samples() -> Iterator[Any]:
            self._seed_epoch(trainer)  # as late as this: Lightning begins validation's data in between
            yield from fetcher.combined_loader

        fetcher = self._begin_data(trainer)
        fetcher.iterator = samples()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remembers the metrics for a checkpoint that is written now: Lightning does not, and goes on behind it."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            results = trainer.fit_loop.epoch_loop._results.metrics(on_step=False)["callback"]
            self._seen = {name: float(value) for name, value in {**trainer.callback_metrics, **results}.items()}

    def _epoch_metrics(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
        metrics = {**self._seen, **super()._epoch_metrics(trainer, module)}
        self._seen = {}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """What `FreezeScheduleCallback.state_dict` gives, the module's rates and the random numbers' state."""
        return {
            **super().state_dict(),
            "stages": list(self._parts.names) if self._parts else [],
            "own": [{key: group[key] for key in ("lr", "momentum", "betas") if key in group} for group in self._own],
            "seen": self._seen,
            "drawn": _random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        super().load_state_dict(state)
        self._seen = state["seen"]
        self._drawn = state["drawn"]


class _ModuleRates:
    """Stands for the optimizer before a module's scheduler: the groups as the module made them, without parameters."""

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        self.param_groups = groups
        self.defaults = defaults
        self._opt_called = True  # schedulers warn if they step before the optimizer, which Lightning sees to

    def step(self) -> None:
        """Is looked at by schedulers, and never called."""

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]


def _flat(schedulers: Sequence[Any]) -> Iterator[Any]:
    """The schedulers with those that they are made of."""
    for scheduler in schedulers:
        yield scheduler
        yield from _flat(getattr(scheduler, "_schedulers", ()))


def _trainer_problems(trainer: L.Trainer) -> Iterator[str]:
    yield from callback_problems(trainer.callbacks)  # type: ignore[attr-defined]
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        yield (
            f"strategy: {type(trainer.strategy).__name__} holds parameters in a form of its own; "
            "a freeze schedule works on one device and with ddp"
        )


def _random_state() -> dict[str, Any]:
    """State of torch's, Python's and numpy's random numbers, in plain containers and tensors."""
    _, numbers, position, *rest = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [np.asarray(numbers).tolist(), int(position), *map(float, rest)],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numbers, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", np.array(numbers, dtype=np.uint32), position, int(has_gauss), cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
