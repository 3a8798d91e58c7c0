"""Training under a freeze schedule: the trainer and its callbacks, the loaders."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from tlresearch.activations.inference import Inference
from tlresearch.activations.plan import FrozenPrefix
from tlresearch.activations.store import default_store
from tlresearch.backbones.base import StagedBackbone
from tlresearch.base.errors import ConfigError, one_line
from tlresearch.base.interrupt import interruptible
from tlresearch.config.parts import make
from tlresearch.config.schema import ExperimentConfig, TrainerConfig
from tlresearch.data.base import Data, SplitName
from tlresearch.data.loading import make_loader
from tlresearch.finetuning.callback import FreezeScheduleCallback, Listener, callback_problems
from tlresearch.finetuning.finite import FiniteLoss
from tlresearch.finetuning.regularize import WeightAverage
from tlresearch.finetuning.resume import EpochCheckpoint, RunFolder, SealedCheckpoints, read_checkpoint
from tlresearch.finetuning.schedule import FreezeSchedule, Phase, Plateau
from tlresearch.run.devices.strategies import build_strategy, take_result, trained_copy
from tlresearch.run.shift.sets import TestSet
from tlresearch.tasks.base import Task

log = logging.getLogger(__name__)

ONE_THREAD = 10_000_000
"""Multiply-adds of a step on stored vectors, such as a linear head's, below which one thread does it.

It is over before another thread has woken up; the other cores are left to whoever records the run.
"""


_CALLBACKS = Path(lightning_callbacks.__file__).parent


@dataclass(frozen=True)
class Built:
    """What an experiment is made of.

    Attributes:
        backbone: The backbone, a part of the task.
        data: The data, with the backbone's preprocessing.
        schedule: What is trained when.
        task: What is trained: backbone, head, loss and metrics.
        sets: Further test sets; none unless the run ends with the test.
    """

    backbone: StagedBackbone
    data: Data
    schedule: FreezeSchedule
    task: Task
    sets: Sequence[TestSet]


class BatchWatch(L.Callback):
    """Knows which batches a run computes, so that memory that runs out is put down to their size.

    Attributes:
        batches: Batches of which size: ``training`` or ``evaluation``; empty while the run is set up or timed, which
            takes both.
    """

    batches: Literal["", "training", "evaluation"] = ""

    @contextlib.contextmanager
    def computing(self, batches: Literal["training", "evaluation"]) -> Iterator[None]:
        """Notes which batches a block computes; after an error the note stays, for whoever handles it."""
        before, self.batches = self.batches, batches
        yield
        self.batches = before

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves the training batches, also in the middle of `Trainer.fit`."""
        self.batches = "evaluation"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Comes back to them."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.batches = "training"


@dataclass(frozen=True)
class Training:
    """How it is trained.

    Attributes:
        config: The config, with what `auto` has become.
        prefix: The data as each phase reads it, through the activation cache.
        plan: The freeze schedule at work, with the history of metrics.
        trainer: Lightning's trainer, which evaluates too.
        watch: Told which batches are computed.
        say: Told in one line what a user should know.
    """

    config: ExperimentConfig
    prefix: FrozenPrefix
    plan: FreezeScheduleCallback
    trainer: L.Trainer
    watch: BatchWatch
    say: Callable[[str], None]


def prepare(
    config: ExperimentConfig,
    built: Built,
    folder: RunFolder,
    *,
    listeners: Sequence[Listener],
    watch: BatchWatch,
    callbacks: Sequence[L.Callback],
    before_checkpoint: Callable[[], object],
    say: Callable[[str], None],
    ours: bool = True,
) -> Training:
    """Builds everything that training needs beside the task.

    Args:
        config: The config, with what `auto` has become.
        built: What is trained, and on what.
        folder: Where checkpoints are written.
        listeners: Told of each epoch, in this order.
        watch: Told which batches are computed.
        callbacks: Further callbacks of the trainer, which come after the freeze schedule's.
        before_checkpoint: Called before a checkpoint is written.
        say: Told in one line what a user should know.
        ours: Whether the processes of several devices were started by `processes.others`.

    Raises:
        ConfigError: If a callback or logger of the config cannot be made, or does not go with a freeze schedule.
    """
    own = [make(section, f"trainer.callbacks[{n}]") for n, section in enumerate(config.trainer.callbacks)]
    if problems := list(callback_problems(own)):
        raise ConfigError([f"trainer.callbacks: {problem}" for problem in problems], config.name)
    prefix = build_prefix(config, built.data, built.backbone, say)
    plan = build_plan(config, built, prefix, listeners, watch)
    callbacks = [watch, *callbacks, *own]
    if config.trainer.checkpoint_every:
        often = config.trainer.checkpoint_every, config.trainer.checkpoint_seconds
        callbacks = [
            *callbacks,
            EpochCheckpoint(folder.checkpoint, *often, before_checkpoint, keep=config.tracking.checkpoint),
        ]
    trainer = build_trainer(config, plan, built.task, folder, callbacks, ours=ours)
    return Training(config, prefix, plan, trainer, watch, say)


def device(config: TrainerConfig) -> torch.device:
    """The kind of device that Lightning will take.

    Raises:
        ConfigError: If the config names one that is not there.
    """
    kinds = {"auto": ("cuda", "mps", "cpu"), "gpu": ("cuda", "mps")}.get(config.accelerator, (config.accelerator,))
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [kind for kind in kinds if there[kind]]
    if not usable:
        problem = f"trainer.accelerator: {config.accelerator} is not there, as torch sees it; set it to auto or cpu"
        raise ConfigError([problem], "trainer")
    return torch.device(usable[0])


def settle(config: ExperimentConfig, settings: Mapping[str, str | int]) -> ExperimentConfig:
    """Puts what `auto` has become, and a batch size lowered for want of memory, into a config."""
    sections: dict[str, Any] = {"data": config.data, "trainer": config.trainer, "cache": config.cache}
    for key, value in settings.items():
        section, _, option = key.partition(".")
        sections[section] = replace(sections[section], **{option: value})
    return replace(config, **sections)


def build_prefix(
    config: ExperimentConfig, data: Data, backbone: StagedBackbone, say: Callable[[str], None]
) -> FrozenPrefix:
    """Builds the activation cache's view of the data."""
    return FrozenPrefix(
        data,
        backbone,
        default_store(int(config.cache.max_gb * 1e9)),
        batch_size=config.data.eval_batch_size,
        mixes=bool(config.data.mixup or config.data.cutmix),
        views=config.cache.views,
        how=Inference(config.cache.precision, config.cache.memory_format),
        off=no_cache(config),
        say=say,
    )


def no_cache(config: ExperimentConfig) -> str:
    """Why frozen stages are not run ahead; empty if they are."""
    if config.trainer.strategy == "fsdp":
        return "no process holds all weights with trainer.strategy fsdp"
    return "" if config.cache.enabled else "cache.enabled is false"


def build_plan(
    config: ExperimentConfig, built: Built, prefix: FrozenPrefix, listeners: Sequence[Listener], watch: BatchWatch
) -> FreezeScheduleCallback:
    """Builds the callback that runs the freeze schedule; with each phase data and threads become those of the phase."""
    options = config.trainer
    stop = options.early_stopping
    threads = torch.get_num_threads()

    def enter(phase: Phase) -> None:
        torch.set_num_threads(threads)
        with watch.computing("evaluation"):  # frozen stages run ahead, in batches of that size
            prefix.enter(phase)
        trained = sum(parameter.numel() for parameter in built.task.parameters() if parameter.requires_grad)
        if prefix.yields_vectors and trained * config.data.batch_size < ONE_THREAD:
            torch.set_num_threads(1)

    return FreezeScheduleCallback(
        built.schedule,
        seed=config.seed,
        select=Plateau(options.monitor, patience=1, mode=options.mode or "max") if options.select == "best" else None,
        early_stopping=Plateau(stop.metric, stop.patience, stop.min_delta, stop.mode or "min") if stop else None,
        listeners=listeners,
        on_phase=enter,
    )


def build_trainer(
    config: ExperimentConfig,
    plan: FreezeScheduleCallback,
    task: Task,
    folder: RunFolder,
    callbacks: Sequence[L.Callback],
    *,
    ours: bool,
) -> L.Trainer:
    """Builds Lightning's trainer; the order of the callbacks is that in which an epoch's end reaches them.

    Where the processes of several devices are `ours`, what the environment says of a Slurm job is not about them.
    """
    options = config.trainer
    loggers = [make(section, f"trainer.loggers[{n}]") for n, section in enumerate(options.loggers)]
    task.arrange(options.memory_format)
    task.publishes = bool(loggers or options.callbacks)
    ordered: list[L.Callback] = [FiniteLoss(), plan, *callbacks]
    if config.regularize.ema > 0:
        average = WeightAverage(config.regularize.ema, task.changing_state)
        plan.weights = average.current
        ordered.insert(0, average)  # in front of the schedule, which reads it at an epoch's end
    with _refused_by_lightning(config):
        return L.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            strategy=build_strategy(options),
            precision=cast(Any, options.precision),
            max_epochs=plan.schedule.max_epochs,
            gradient_clip_val=options.gradient_clip,
            accumulate_grad_batches=options.accumulate,
            deterministic=options.deterministic,
            callbacks=ordered,
            plugins=[SealedCheckpoints(), *([LightningEnvironment()] if ours and options.devices > 1 else [])],
            default_root_dir=folder.path,
            logger=loggers or False,
            log_every_n_steps=1,
            enable_checkpointing=any(isinstance(callback, lightning_callbacks.Checkpoint) for callback in ordered),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )


@contextlib.contextmanager
def _refused_by_lightning(config: ExperimentConfig) -> Iterator[None]:
    """Turns what Lightning says of callbacks and loggers of the user's into one line."""
    try:
        yield
    except (MisconfigurationException, RuntimeError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        theirs = isinstance(error, MisconfigurationException) or Path(where).parent == _CALLBACKS
        if not theirs or not (config.trainer.callbacks or config.trainer.loggers):
            raise
        raise ConfigError([f"trainer.callbacks: {one_line(error, 400)}"], config.name) from error


def computation(trainer: L.Trainer, settings: Mapping[str, str]) -> dict[str, Any]:
    """What decides about the last bits of a result beside code, versions and hardware; a repetition compares it."""
    return {
        "threads": torch.get_num_threads(),
        **settings,
        "device": trainer.strategy.root_device.type,
        "devices": trainer.num_devices,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda or "none",
    }


def train(how: Training, task: Task, folder: RunFolder) -> None:
    """Trains, from the checkpoint in the folder if there is a sound one; a schedule that trains nothing evaluates."""
    if not how.plan.schedule.trains:
        evaluate_validation(how, task)
        how.plan.evaluated(how.trainer, task, {f"val/{key}": value for key, value in task.results["val"].items()})
        return
    checkpoint = read_checkpoint(folder.checkpoint)
    if checkpoint is not None and how.plan.lacking(checkpoint["callbacks"].get(how.plan.state_key, {})):
        log.warning("the checkpoint %s is of another version: the run starts from the beginning", folder.checkpoint)
        checkpoint = None
    if checkpoint is None:
        folder.forget()
    threads = torch.get_num_threads()
    try:
        with interruptible(), how.watch.computing("training"), _refused_by_lightning(how.config):
            how.trainer.fit(
                trained_copy(how.trainer, task),
                _loader(how, "train"),
                _loader(how, "val"),
                ckpt_path=folder.checkpoint if checkpoint else None,
                weights_only=True,
            )
    finally:
        torch.set_num_threads(threads)  # phases change it
    take_result(how.trainer, task)


def evaluate_test(how: Training, task: Task) -> dict[str, float]:
    """Evaluates the test split: once, with the selected weights."""
    how.trainer.test(task, _loader(how, "test"), verbose=False)
    return {f"test/{name}": value for name, value in task.results["test"].items()}


def evaluate_validation(how: Training, task: Task) -> None:
    """Evaluates validation with the selected weights: figures and predictions are then of them, not of the last."""
    how.trainer.validate(task, _loader(how, "val"), verbose=False)


def selected(plan: FreezeScheduleCallback) -> tuple[dict[str, float], int]:
    """Metrics and number of the epoch whose weights are kept."""
    if not plan.history:
        return {}, 0
    epoch = len(plan.history) - 1
    if plan.best is not None and plan.best.epoch is not None:
        epoch = plan.best.epoch
    return dict(plan.history[epoch]), epoch


def gaps(metrics: Mapping[str, float]) -> dict[str, float]:
    """Training minus validation of each metric that both splits have: how much a run overfits.

    The training value is that of the running epoch, with weights that still change, augmentation and dropout, so that
    it can lie below validation.
    """
    names = [name.removeprefix("train/") for name in metrics if name.startswith("train/")]
    return {
        f"gap/{name}": metrics[f"train/{name}"] - metrics[f"val/{name}"] for name in names if f"val/{name}" in metrics
    }


def _loader(how: Training, split: SplitName) -> DataLoader[Any]:
    data, training = how.config.data, split == "train"
    share = data.batch_size // how.config.trainer.devices  # of the batch: checked to be a whole number
    return make_loader(
        how.prefix.splits[split],
        batch_size=share if training else data.eval_batch_size,
        shuffle=training,
        seed=how.config.seed,
        workers=0 if how.prefix.serves(split) else data.workers,
        sampling=data.sampling,
    )
