"""Metrics of torchmetrics that a config adds to those of a task."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from tlresearch.base.direction import Direction, Directions, direction_of
from tlresearch.base.errors import ConfigError, load_object, one_line
from tlresearch.config.parts import make
from tlresearch.config.schema import MetricConfig
from tlresearch.data.base import Data
from tlresearch.tasks.losses import described

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def label_of(section: MetricConfig) -> str:
    """Returns what a metric is called in results: its label, else its class in small letters: ``cohen_kappa``."""
    name = section.name.rpartition(".")[2]
    short = re.sub(r"^(Binary|Multiclass|Multilabel)(?=.)", "", name)
    return section.label or _WORDS.sub("_", short).lower()


def directions_of(sections: Sequence[MetricConfig]) -> Directions:
    """Returns the direction of each metric, as its class or else the config says; those without one are left out."""
    found: dict[str, Direction] = {}
    for number, section in enumerate(sections):
        higher = getattr(load_object(section.name, f"task.metrics[{number}].name"), "higher_is_better", None)
        direction = section.direction or {True: "max", False: "min"}.get(cast(bool, higher))
        if direction is not None:
            found[label_of(section)] = cast(Direction, direction)
    return found


def build_metrics(sections: Sequence[MetricConfig], data: Data, ours: Directions, source: str) -> dict[str, Metric]:
    """Builds the metrics that a config adds, by label.

    Args:
        sections: The entries of `task.metrics`.
        data: The data, whose number of classes they get.
        ours: Directions of the task's own metrics, whose names are taken.
        source: Name of the experiment, for errors.

    Raises:
        ConfigError: If one cannot be made, or has the name of another.
    """
    classes = len(data.classes)
    multilabel = data.kind == "multilabel"
    given: dict[str, Any] = {"num_classes": classes, "task": "multiclass"}
    if multilabel:
        given = {"num_labels": classes, "task": "multilabel"}
    if data.kind == "numbers":
        given = {"num_outputs": classes}
    if data.kind == "masks":
        given["ignore_index"] = 255
    metrics: dict[str, Metric] = {}
    for number, section in enumerate(sections):
        label, key = label_of(section), f"task.metrics[{number}]"
        if label in metrics or direction_of(label, ours) is not None:
            raise ConfigError(
                [f"{key}.label: there is a metric '{label}' already; give this one another label"], source
            )
        metrics[label] = make(section, key, **given)
    return metrics


class AddedMetrics(nn.Module):
    """The added metrics of a split; as a module, so that they follow the task to its device.

    Args:
        metrics: Metrics by label.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict({f"metric {label}": metric.clone() for label, metric in metrics.items()})

    def update(self, predictions: Any, targets: Any) -> None:
        """Takes a batch.

        Raises:
            ConfigError: If a metric refuses its first batch.
        """
        for label, metric in self._all():
            try:
                metric.update(predictions, targets)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of whatever code
                if metric.update_count > 1:  # it took batches before: no matter of the config
                    raise
                given = f"predictions {described(predictions)} and targets {described(targets)}"
                reason = f"{type(error).__name__}: {one_line(error, 300)}"
                raise ConfigError([f"task.metrics: {label} does not take {given}: {reason}"], label) from error

    def finish(self) -> dict[str, float]:
        """Returns the values, and resets.

        Raises:
            ConfigError: If a value is not one number.
        """
        values = {}
        for label, metric in self._all():
            if not metric.update_count:
                continue
            value = metric.compute()
            metric.reset()
            if not isinstance(value, (Tensor, int, float)) or (isinstance(value, Tensor) and value.numel() != 1):
                raise ConfigError(
                    [f"task.metrics: {label} must give one number, such as with average: macro, "
                     f"but gave {described(value)}"],
                    label,
                )  # fmt: skip
            values[label] = float(value)
        return values

    def _all(self) -> list[tuple[str, Metric]]:
        return [(name.removeprefix("metric "), cast(Metric, metric)) for name, metric in self.metrics.items()]
