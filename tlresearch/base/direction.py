"""Directions of metrics: whether more or less is better. A task declares them for its metrics; its run records them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

Direction = Literal["min", "max"]
"""``min``: less is better."""
Directions = Mapping[str, Direction]
"""Direction by the name of a metric without its split; ``*`` stands for any text, such as a class in ``map_*``."""

SHARED: Directions = {"loss": "min", "drop": "min"}
"""Metrics of every task: the loss, and on a shifted test set the drop against the source."""


def direction_of(metric: str, declared: Directions) -> Direction | None:
    """Returns the direction of a metric; ``None`` if it is not declared. A whole name takes precedence over patterns.

    Args:
        metric: A metric, with or without its split: ``val/accuracy``, ``shift/rain/drop``.
        declared: The task's directions.
    """
    split, _, name = metric.rpartition("/")
    if split.startswith("gap"):  # the difference between training and validation has no better direction
        return None
    directions = {**SHARED, **declared}
    if name in directions:
        return directions[name]
    return next((direction for pattern, direction in directions.items() if fnmatchcase(name, pattern)), None)
