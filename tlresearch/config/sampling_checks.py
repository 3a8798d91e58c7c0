"""Impossible combinations of how samples are split and drawn. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tlresearch.config.schema import DataConfig, ExperimentConfig


def sampling_problems(config: ExperimentConfig) -> Iterator[str]:
    """Yields one line per problem, each beginning with the key it is about."""
    data = config.data
    if data.sampling == "balanced" and config.task.class_weights == "balanced":
        yield "data.sampling: balanced shows every class equally often already; use it or task.class_weights, not both"
    if data.group_column is not None and data.name != "image_csv":
        yield f"data.group_column: is only read by image_csv, but data.name is {data.name}; use data.group_pattern"
    if data.group_pattern is not None:
        yield from _pattern(data, data.group_pattern)


def _pattern(data: DataConfig, pattern: str) -> Iterator[str]:
    if data.group_column is not None:
        yield "data.group_pattern: give it or data.group_column, not both"
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        yield f"data.group_pattern: '{pattern}' is no regular expression: {error}"
        return
    if groups < 1:
        yield rf"data.group_pattern: needs a group in parentheses, such as '(patient\d+)', but got '{pattern}'"
