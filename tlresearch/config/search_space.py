"""The search space: a pure function from a trial to the overrides of an experiment."""

from __future__ import annotations

import operator
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import yaml

from tlresearch.base.errors import ConfigError
from tlresearch.config.checks import CONDITION
from tlresearch.config.schema import type_of
from tlresearch.config.sweep_schema import SpaceConfig

COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


ALL = "all"
"""Every stage of the backbone, as a depth."""


def log(low: float, high: float) -> SpaceConfig:
    """A number on a logarithmic scale, such as a rate."""
    return SpaceConfig(low=low, high=high, log=True)


def uniform(low: float, high: float, *, step: float | None = None) -> SpaceConfig:
    """A number, each as likely as any other."""
    return SpaceConfig(low=low, high=high, step=step)


def integers(low: int, high: int, *, step: int | None = None, log: bool = False) -> SpaceConfig:
    """A whole number, both ends included."""
    return SpaceConfig(low=low, high=high, step=step, log=log, whole=True)


def choice(*options: Any) -> SpaceConfig:
    """One of the options."""
    return SpaceConfig(choices=list(options))


def depths(most: int | str = ALL, *, least: int = 0) -> SpaceConfig:
    """An unfreeze depth: the number of stages trained, counted from the head; 0 trains the head alone.

    Args:
        most: The largest; ``all`` is the number of stages of an experiment's backbone.
        least: The smallest.
    """
    return SpaceConfig(low=least, high=most, whole=True)


class Suggests(Protocol):
    """The part of an Optuna trial that is used; `optuna.trial.FixedTrial` has it too."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Suggests a whole number."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggests a number."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Suggests one of the choices."""


def resolve_all(space: Mapping[str, SpaceConfig], stages: int) -> dict[str, SpaceConfig]:
    """Returns the space with ``all`` replaced by the backbone's number of stages: `high`, choices and conditions."""
    resolved = {}
    for key, dimension in space.items():
        values = {**vars(dimension), "high": stages if dimension.high == ALL else dimension.high}
        if counts(key):
            values["choices"] = list(dict.fromkeys(stages if choice == ALL else choice for choice in dimension.choices))
        if dimension.when is not None and _names_all(dimension.when):
            values["when"] = re.sub(rf"{ALL}\s*$", str(stages), dimension.when)
        resolved[key] = SpaceConfig(**values)
    return resolved


def in_stages(point: Mapping[str, Any], stages: int) -> dict[str, Any]:
    """Returns a point of the space with depths in numbers of stages."""
    return {key: stages if value == ALL and counts(key) else value for key, value in point.items()}


def needs_stages(space: Mapping[str, SpaceConfig]) -> bool:
    """Whether `resolve_all` has to know the backbone's number of stages."""
    return any(ALL in (d.high, *d.choices) or (d.when is not None and _names_all(d.when)) for d in space.values())


def _names_all(condition: str) -> bool:
    match = CONDITION.match(condition)
    return match is not None and match["value"] == ALL


def suggest(trial: Suggests, space: Mapping[str, SpaceConfig]) -> dict[str, Any]:
    """Draws a point of the space.

    A range over an option that is a whole number gives whole numbers.
    Conditions are looked at in the order of the file; a dimension whose
    condition fails is left out, so that the experiment keeps its own value.

    Args:
        trial: An Optuna trial.
        space: Key of the experiment to its range or choices.

    Returns:
        Overrides by full key.
    """
    point: dict[str, Any] = {}
    for key, dimension in space.items():
        if dimension.when is not None and not holds(dimension.when, point):
            continue
        if dimension.choices:
            by_stored = stored(dimension.choices)
            point[key] = by_stored[trial.suggest_categorical(key, list(by_stored))]
            continue
        low, high, step = dimension.low, dimension.high, dimension.step
        if low is None or high is None or isinstance(high, str):
            raise ConfigError([f"space[{key}]: needs low and high, or choices"], "space")
        if dimension.whole or counts(key):
            point[key] = trial.suggest_int(key, int(low), int(high), step=int(step or 1), log=dimension.log)
        else:
            point[key] = trial.suggest_float(key, low, high, step=step, log=dimension.log)
    return point


def holds(condition: str, point: Mapping[str, Any]) -> bool:
    """Whether a condition such as ``freeze.unfreeze_depth > 0`` holds at a point; not if its key was left out."""
    match = CONDITION.match(condition)
    if match is None:
        raise ConfigError([f"'{condition}' is not a comparison of a key and a value"], "space")
    if match["key"] not in point:
        return False
    return COMPARE[match["sign"]](point[match["key"]], yaml.safe_load(match["value"]))


def counts(key: str) -> bool:
    """Whether an option is a whole number, such as a depth or a batch size."""
    try:
        hint = type_of(key)
    except KeyError:  # a name in a function's space
        return False
    kinds = {hint, *typing.get_args(hint)}
    return int in kinds and float not in kinds


def stored(choices: list[Any]) -> dict[Any, Any]:
    """Returns the choices by what Optuna stores of them: itself of a plain value, else its YAML text."""
    if all(isinstance(choice, (str, int, float, bool, type(None))) for choice in choices):
        return {choice: choice for choice in choices}
    return {yaml.safe_dump(choice, default_flow_style=True).strip(): choice for choice in choices}
