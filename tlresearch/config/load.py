"""From YAML and ``key=value`` to a checked config; every problem is reported at once. No torch."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tlresearch.config import checks
from tlresearch.config.paths import find_yaml, topic
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.errors import ConfigError, nearest

ConfigT = TypeVar("ConfigT", ExperimentConfig, SweepConfig)
Overrides = Mapping[str, Any] | Sequence[str]


@dataclass(frozen=True)
class Loaded(Generic[ConfigT]):
    """A config that passed every check.

    Attributes:
        config: The config with every interpolation resolved.
        recorded: The whole config as YAML, defaults filled in. ``${oc.env:...}`` stays unresolved, so that no
            secret is written; this text alone starts the same run again.
        source: The file it came from, for error messages.
    """

    config: ConfigT
    recorded: str
    source: str

    def flat(self) -> dict[str, Any]:
        """Every option by full key, as in `recorded`; what MLflow shows as parameters.

        How much is recorded is no property of an experiment, and would only differ in every comparison.
        """
        flat = dict(_flatten(yaml.safe_load(self.recorded)))
        return {key: value for key, value in flat.items() if not key.startswith("tracking.")}


def load_experiment(name: str | Path, overrides: Overrides = ()) -> Loaded[ExperimentConfig]:
    """Loads an experiment by path, or by name under ``experiments/``.

    Raises:
        UserError: If there is no such file.
        ConfigError: With every problem of the file and the overrides.
    """
    path = find_yaml(str(name), "experiments")
    folder, stem = topic(path, "experiments")
    values = _read(path)
    values.setdefault("name", stem)
    tracking = values.setdefault("tracking", {})
    if isinstance(tracking, dict):
        tracking.setdefault("experiment", folder)
    return _load(ExperimentConfig, values, overrides, str(path))


def load_sweep(name: str | Path, overrides: Overrides = ()) -> Loaded[SweepConfig]:
    """Loads a sweep by path, or by name under ``sweeps/``.

    Raises:
        UserError: If there is no such file.
        ConfigError: With every problem of the file and the overrides.
    """
    path = find_yaml(str(name), "sweeps")
    values = _read(path)
    values.setdefault("name", "/".join(dict.fromkeys(topic(path, "sweeps"))))
    return _load(SweepConfig, values, overrides, str(path))


def revise(experiment: Loaded[ExperimentConfig], overrides: Overrides) -> Loaded[ExperimentConfig]:
    """Returns the experiment with some values replaced, checked again."""
    return load_text(experiment.recorded, overrides, experiment.source)


def load_text(text: str, overrides: Overrides = (), source: str = "config") -> Loaded[ExperimentConfig]:
    """Loads an experiment from YAML text, such as what a run recorded."""
    return _load(ExperimentConfig, yaml.safe_load(text), overrides, source)


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"is not valid YAML: {' '.join(str(error).split())}"], str(path)) from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError(["must hold sections such as `data:` and `backbone:`, not a list"], str(path))
    values = OmegaConf.to_container(loaded, resolve=False)
    return typing.cast(dict[str, Any], values)


def _load(schema: type[ConfigT], values: dict[str, Any], overrides: Overrides, source: str) -> Loaded[ConfigT]:
    problems: list[str] = []
    for key, value in _parse(overrides, problems):
        _assign(values, key, value)
    tree = OmegaConf.structured(schema)
    _merge(tree, schema, values, "", problems)
    config = _resolve(tree, schema, problems)
    problems += _range_problems(config)
    # A section with a bad value was filled with defaults: what its combinations say would only confuse.
    bad_sections = {_section_of(problem) for problem in problems}
    problems += [line for line in checks.problems(config) if _section_of(line) not in bad_sections]
    if problems:
        raise ConfigError(problems, source)
    return Loaded(config, OmegaConf.to_yaml(tree, resolve=False), source)


def _parse(overrides: Overrides, problems: list[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        yield from overrides.items()
        return
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            problems.append(f"'{item}': an override has the form key=value, such as optimizer.lr=3e-3")
            continue
        try:
            parsed = OmegaConf.create(f"value: {text}" if text else "value: ''")
            plain: Any = OmegaConf.to_container(parsed, resolve=False)
            yield key.strip(), plain["value"]
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            problems.append(f"{key}: '{text}' is not valid YAML: {str(error).splitlines()[0]}")


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a value by its dotted key; a mapping is merged into the section, whatever else is in the way replaced."""
    *sections, last = key.split(".")
    for section in sections:
        below = values.get(section)
        if not isinstance(below, dict):
            below = values[section] = {}
        values = below
    _put(values, last, value)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    # Free-form mappings are one value: the options of one backbone are nothing to another.
    if isinstance(value, Mapping) and value and isinstance(values.get(key), dict) and key not in ("options", "tags"):
        for name, entry in value.items():
            _put(values[key], str(name), entry)
    else:
        values[key] = value


def _merge(node: DictConfig, schema: type, values: Any, prefix: str, problems: list[str]) -> None:
    """Puts plain values into a structured node, key by key, so that one bad key does not hide the next."""
    if not isinstance(values, Mapping):
        known = ", ".join(f.name for f in dataclasses.fields(schema))
        problems.append(f"{prefix.rstrip('.')}: is a section with the keys {known}, but got {values!r}")
        return
    hints = typing.get_type_hints(schema)
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in hints:
            problems.append(f"{path}: unknown key{nearest(str(key), list(hints))}")
            continue
        section = _section(hints[key])
        container = typing.get_origin(hints[key])
        if section is None or (value is None and container is not None):
            _set_leaf(node, key, value, hints[key], path, problems)
        elif container is list:
            _merge_list(node, key, section, value, path, problems)
        elif container is dict:
            _merge_dict(node, key, section, value, path, problems)
        else:
            if node[key] is None:
                node[key] = OmegaConf.structured(section)
            _merge(node[key], section, value, f"{path}.", problems)


def _merge_list(node: DictConfig, key: str, section: type, value: Any, path: str, problems: list[str]) -> None:
    if not isinstance(value, list):
        problems.append(f"{path}: must be a list, but got {value!r}")
        return
    for index, entry in enumerate(value):
        element = OmegaConf.structured(section)
        _merge(element, section, entry, f"{path}[{index}].", problems)
        node[key].append(element)


def _merge_dict(node: DictConfig, key: str, section: type, value: Any, path: str, problems: list[str]) -> None:
    if not isinstance(value, Mapping):
        problems.append(f"{path}: must map names to sections, but got {value!r}")
        return
    for name, entry in value.items():
        element = OmegaConf.structured(section)
        _merge(element, section, entry, f"{path}[{name}].", problems)
        node[key][str(name)] = element


def _section(hint: Any) -> type | None:
    """The dataclass inside a type: ``C``, ``C | None``, ``list[C]`` or ``dict[str, C]``; else ``None``."""
    for inner in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            return inner
    return None


def _set_leaf(node: DictConfig, key: str, value: Any, hint: Any, path: str, problems: list[str]) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)  # OmegaConf's word for a conversion nobody declared
            node[key] = _as_declared(value, hint)
    except (FutureWarning, OmegaConfBaseException, ValueError, TypeError):
        choices = [str(choice) for choice in _choices(hint)]
        close = nearest(str(value), choices) if isinstance(value, str) else ""
        problems.append(f"{path}: must be {_describe(hint)}, but got {value!r}{close}")


def _as_declared(value: Any, hint: Any) -> Any:
    """Writes whole numbers as floats, and numbers as text, where that is what is declared."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is list and isinstance(value, list):
        return [_as_declared(entry, inner[0]) for entry in value]
    if origin is dict and isinstance(value, dict):
        return {str(name): _as_declared(entry, inner[1]) for name, entry in value.items()}
    kinds = {hint, *inner}
    if type(value) is int and float in kinds and int not in kinds:
        return float(value)
    if type(value) in (int, float) and str in kinds and not kinds & {int, float}:
        return str(value)
    return value


def _choices(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [choice for inner in typing.get_args(hint) for choice in _choices(inner)]


def _describe(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    if hint in names:
        return names[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in inner)
    if origin is list:
        return f"a list, each entry {_describe(inner[0])}" if inner[0] is not Any else "a list"
    return "a mapping" if origin is dict else str(hint)


def _section_of(problem: str) -> str:
    return re.split(r"[.:\[]", problem, maxsplit=1)[0]


def _resolve(tree: DictConfig, schema: type[ConfigT], problems: list[str]) -> ConfigT:
    """The typed config with interpolations resolved; one that fails becomes a problem and takes its default.

    A wrong interpolated value is reported by its key only: it may come from a variable that holds a secret.
    """
    defaults = OmegaConf.structured(schema)
    while True:
        try:
            return typing.cast(ConfigT, OmegaConf.to_object(tree))
        except OmegaConfBaseException as error:
            key = error.full_key or ""
            text = str(error).splitlines()[0]
            reason = text if "not found" in text else "the interpolated value has the wrong type"
            problems.append(f"{key}: cannot be resolved: {reason}")
            if not key or OmegaConf.select(defaults, key, default=tree) is tree:
                raise ConfigError(problems) from None
            OmegaConf.update(tree, key, OmegaConf.select(defaults, key))


def _range_problems(section: Any, prefix: str = "") -> Iterator[str]:
    """Yields what lies outside the ranges that the schema states."""
    for item in dataclasses.fields(section):
        value, path = getattr(section, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            yield from _range_problems(value, f"{path}.")
        elif isinstance(value, (list, dict)):
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, entry in entries:
                if dataclasses.is_dataclass(entry):
                    yield from _range_problems(entry, f"{path}[{key}].")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield from _outside(value, path, item.metadata)


def _outside(value: float, path: str, about: Mapping[str, Any]) -> Iterator[str]:
    bounds: dict[str, tuple[float | None, Callable[[float], bool]]] = {
        "at least": (about.get("at_least"), lambda bound: value >= bound),
        "above": (about.get("above"), lambda bound: value > bound),
        "at most": (about.get("at_most"), lambda bound: value <= bound),
        "below": (about.get("below"), lambda bound: value < bound),
    }
    for words, (bound, holds) in bounds.items():
        # Written so that NaN, which fulfils no comparison, is refused by any bound.
        if bound is not None and not holds(bound):
            unit = f" ({about['unit']})" if about.get("unit") else ""
            yield f"{path}: must be {words} {bound:g}{unit}, but got {value!r}"


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
