"""Training under a freeze schedule: the process, the trainer and its callbacks, the loaders."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from torch.utils.data import DataLoader

from tlresearch.activations.inference import Inference
from tlresearch.activations.plan import FrozenPrefix
from tlresearch.activations.store import default_store
from tlresearch.backbones.base import StagedBackbone
from tlresearch.config.schema import ExperimentConfig, TrainerConfig
from tlresearch.data.base import Data, SplitName
from tlresearch.data.loading import make_loader
from tlresearch.data.seeding import seed_all
from tlresearch.finetuning.callback import FreezeScheduleCallback, Listener
from tlresearch.finetuning.finite import FiniteLoss
from tlresearch.finetuning.regularize import WeightAverage
from tlresearch.finetuning.resume import EpochCheckpoint, RunFolder, SealedCheckpoints, read_checkpoint
from tlresearch.finetuning.schedule import FreezeSchedule, Phase, Plateau
from tlresearch.run.devices.memory import keep_freed_memory
from tlresearch.run.devices.strategies import build_strategy, take_result, trained_copy
from tlresearch.tasks.base import Task
from tlresearch.tracking.run import Run

ONE_THREAD = 10_000_000
"""Multiply-adds of a step on stored vectors, such as a linear head's, below which one thread does it.

It is over before another thread has woken up; the other cores are left to whoever records the run.
"""


def prepare_process(config: ExperimentConfig) -> None:
    """Sets what holds for the whole process: quiet libraries, threads, determinism, seed."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # Advice on settings we chose, and Lightning's own use of what torch has deprecated.
    for message in (".*does not have many workers.*", ".*treespec, LeafSpec.*"):
        warnings.filterwarnings("ignore", message=message)
    if device(config.trainer).type == "cpu":
        keep_freed_memory()
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    elif config.trainer.devices > 1 and device(config.trainer).type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(min(torch.get_num_threads(), max(1, cores // config.trainer.devices)))
    torch.use_deterministic_algorithms(config.trainer.deterministic)
    # Filling new memory would cost time and only shows bugs of reading what was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    seed_all(config.seed)


def device(config: TrainerConfig) -> torch.device:
    """The kind of device that Lightning will take."""
    wanted = {"auto": ("cuda", "mps"), "gpu": ("cuda", "mps"), "cuda": ("cuda",), "mps": ("mps",)}
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return torch.device(next((kind for kind in wanted.get(config.accelerator, ()) if there[kind]), "cpu"))


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
    config: ExperimentConfig, schedule: FreezeSchedule, task: Task, prefix: FrozenPrefix, listeners: Sequence[Listener]
) -> FreezeScheduleCallback:
    """Builds the callback that runs the freeze schedule; with each phase data and threads become those of the phase."""
    options = config.trainer
    stop = options.early_stopping
    threads = torch.get_num_threads()

    def enter(phase: Phase) -> None:
        torch.set_num_threads(threads)
        prefix.enter(phase)
        trained = sum(parameter.numel() for parameter in task.parameters() if parameter.requires_grad)
        if prefix.yields_vectors and trained * config.data.batch_size < ONE_THREAD:
            torch.set_num_threads(1)

    return FreezeScheduleCallback(
        schedule,
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
    tracked: Run,
    progress: L.Callback | None,
    *,
    ours: bool = True,
) -> L.Trainer:
    """Builds Lightning's trainer; the order of the callbacks is that in which an epoch's end reaches them.

    Where the processes of several devices are `ours`, what the environment says of a Slurm job is not about them.
    """
    options = config.trainer
    task.arrange(options.memory_format)
    callbacks: list[L.Callback] = [FiniteLoss(), plan]
    if config.regularize.ema > 0:
        average = WeightAverage(config.regularize.ema, task.changing_state)
        plan.weights = average.current
        callbacks.insert(0, average)  # in front of the schedule, which reads it at an epoch's end
    if progress is not None:
        callbacks.append(progress)
    if options.checkpoint_every:
        callbacks.append(
            EpochCheckpoint(folder.checkpoint, options.checkpoint_every, options.checkpoint_seconds, tracked.flush)
        )
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=build_strategy(options),
        precision=cast(Any, options.precision),
        max_epochs=plan.schedule.max_epochs,
        gradient_clip_val=options.gradient_clip,
        accumulate_grad_batches=options.accumulate,
        deterministic=options.deterministic,
        callbacks=callbacks,
        plugins=[SealedCheckpoints(), *([LightningEnvironment()] if ours and options.devices > 1 else [])],
        default_root_dir=folder.path,
        logger=False,
        enable_checkpointing=options.checkpoint_every > 0,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


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


def train(trainer: L.Trainer, task: Task, prefix: FrozenPrefix, config: ExperimentConfig, folder: RunFolder) -> None:
    """Trains, from the checkpoint in the folder if there is a sound one."""
    checkpoint = read_checkpoint(folder.checkpoint)
    if checkpoint is None:
        folder.forget()
    threads = torch.get_num_threads()
    try:
        trainer.fit(
            trained_copy(trainer, task),
            _loader(config, prefix, "train"),
            _loader(config, prefix, "val"),
            ckpt_path=folder.checkpoint if checkpoint else None,
            weights_only=True,
        )
    except SystemExit as leaving:
        # Lightning turns Ctrl-C into an exit; here it stays what it was, so that every caller can tell.
        if isinstance(leaving.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        torch.set_num_threads(threads)  # phases change it
    take_result(trainer, task)


def evaluate_test(trainer: L.Trainer, task: Task, prefix: FrozenPrefix, config: ExperimentConfig) -> dict[str, float]:
    """Evaluates the test split: once, with the selected weights."""
    trainer.test(task, _loader(config, prefix, "test"), verbose=False)
    return {f"test/{name}": value for name, value in task.results["test"].items()}


def look_again(trainer: L.Trainer, task: Task, prefix: FrozenPrefix, config: ExperimentConfig) -> None:
    """Evaluates validation with the selected weights: figures and predictions are then of them, not of the last."""
    trainer.validate(task, _loader(config, prefix, "val"), verbose=False)


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


def _loader(config: ExperimentConfig, prefix: FrozenPrefix, split: SplitName) -> DataLoader[Any]:
    training = split == "train"
    share = config.data.batch_size // config.trainer.devices  # of the batch: checked to be a whole number
    return make_loader(
        prefix.splits[split],
        batch_size=share if training else config.data.eval_batch_size,
        shuffle=training,
        seed=config.seed,
        workers=0 if prefix.serves(split) else config.data.workers,
        sampling=config.data.sampling,
    )
