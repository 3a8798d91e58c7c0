"""Whether more or less of a metric is better. Every task declares it of its metrics; a run records what it declared."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

Direction = Literal["min", "max"]
"""``min``: less is better."""
Directions = Mapping[str, Direction]
"""Direction by the name of a metric without its split; ``*`` stands for any text, such as a class in ``map_*``."""

SHARED: Directions = {"loss": "min", "drop": "min"}
"""Metrics that are no single task's: every task has a loss, and a shifted test set what it loses against the source."""


def direction_of(metric: str, declared: Directions) -> Direction | None:
    """Returns the direction of a metric, by its whole name before any pattern; ``None`` where nobody declared it.

    Args:
        metric: A metric, with or without its split: ``val/accuracy``, ``shift/rain/drop``.
        declared: What the task declares.
    """
    split, _, name = metric.rpartition("/")
    if split.startswith("gap"):  # between training and validation: neither more nor less of it is better
        return None
    known = {**SHARED, **declared}
    if name in known:
        return known[name]
    return next((direction for pattern, direction in known.items() if fnmatchcase(name, pattern)), None)
