"""Metrics that decide about a run: which way is better, and that the task gives them, checked before training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from tlresearch.backbones.base import evaluating
from tlresearch.base.direction import SHARED, Direction, direction_of
from tlresearch.base.errors import ConfigError, nearest
from tlresearch.config.checks import watched
from tlresearch.config.schema import ExperimentConfig, TaskConfig
from tlresearch.data.base import Data, SampleKey
from tlresearch.tasks.base import Task
from tlresearch.tasks.build import declared, find_task


def monitored(config: ExperimentConfig) -> str:
    """Returns the metric that a run is watched by: the config's, else the task's own on validation."""
    return config.trainer.monitor or f"val/{find_task(config.task.name).monitor}"


def directed(config: ExperimentConfig) -> ExperimentConfig:
    """Says which metric is watched, and of each whether it should fall or rise, where the config leaves it to the task.

    Raises:
        ConfigError: If the task declares no direction of a metric that decides about the run.
    """
    directions = declared(config.task)
    problems: list[str] = []

    def mode(section: str, metric: str, stated: Direction | None, *, decides: bool = True) -> Direction:
        direction = stated or direction_of(metric, directions)
        if direction is None and decides:
            problems.append(f"{section}.mode: {undeclared(config.task, metric)}; set min or max")
        return direction or "max"

    trainer, stop = config.trainer, config.trainer.early_stopping
    if stop is not None:
        stop = replace(stop, mode=mode("trainer.early_stopping", stop.metric, stop.mode))
    monitor = monitored(config)
    way_of_all = mode("trainer", monitor, trainer.mode, decides=trainer.select == "best")
    phases = list(config.freeze.phases)
    for number, phase in enumerate(phases):
        if (until := phase.until) is not None:
            way = mode(f"freeze.phases[{number}].until", until.metric, until.mode)
            phases[number] = replace(phase, until=replace(until, mode=way))
    if problems:
        raise ConfigError(problems, config.name)
    return replace(
        config,
        trainer=replace(trainer, monitor=monitor, mode=way_of_all, early_stopping=stop),
        freeze=replace(config.freeze, phases=phases),
    )


def undeclared(task: TaskConfig, metric: str) -> str:
    """Says that a task does not declare which way a metric is better, with the nearest name that it declares."""
    split = metric.rpartition("/")[0]
    known = [f"{split}/{name}" for name in {**SHARED, **declared(task)} if "*" not in name]
    return f"{task.name} does not say which way {metric} is better{nearest(metric, known)}"


def metric_names(task: Task, data: Data) -> tuple[str, ...]:
    """Names of the metrics that a task gives in each epoch, with their split; empty if that cannot be known.

    Only the metrics themselves know their names, so two samples are evaluated (one has no correlation). What gathers
    samples is copied for it: the task stays as it is.
    """
    kept = (task.backbone, task.head, task._optimizer, task._mixer, task._penalty)
    probe = copy.deepcopy(task, {id(part): part for part in kept})
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluating(probe), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what has no value with so few samples
            validation = data.splits["val"]
            batch = validation.__getitems__([SampleKey(row, 0) for row in range(min(2, len(validation)))])
            outputs = probe(batch.inputs, batch.boundary)
            loss = probe.loss(outputs, batch.targets)
            names = []
            for split in ("train", "val"):
                probe.update_metrics(split, outputs, batch, loss)
                names += [f"{split}/{name}" for name in probe.compute_metrics(split)]
    except Exception:  # code of the user's own that takes no batch of two samples; what else is wrong, training tells
        return ()
    return (*names, *(f"val/{label}" for label in task.added_labels))


def check_watched(config: ExperimentConfig, names: Sequence[str], further: Mapping[str, str]) -> None:
    """Refuses to watch metrics that the run would not give.

    Args:
        config: The experiment.
        names: What `metric_names` found.
        further: Metrics that are watched from outside the run, by the key that names them.

    Raises:
        ConfigError: If one is not among the names.
    """
    problems = [
        f"{key}: '{metric}' is not recorded{nearest(metric, names)}; recorded: {', '.join(sorted(names))}"
        for key, metric in [*watched(config), *further.items()]
        if names and metric not in names
    ]
    if problems:
        raise ConfigError(problems, config.name)
