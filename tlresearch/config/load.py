"""From YAML and ``key=value`` to a checked config; every problem is reported at once. No torch."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tlresearch.base.errors import ConfigError, one_line
from tlresearch.base.paths import find_yaml, topic
from tlresearch.base.redact import read_variable
from tlresearch.config import checks
from tlresearch.config.merging import assign, merge
from tlresearch.config.parts import drop_unread, part_problems
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.setting import outside
from tlresearch.config.sweep_schema import SweepConfig

ConfigT = TypeVar("ConfigT", ExperimentConfig, SweepConfig)
SchemaT = TypeVar("SchemaT")
P = ParamSpec("P")
Overrides = Mapping[str, Any] | Sequence[str]
_VARIABLE = "tlresearch.env"
"""What reads a variable for a config of ours: OmegaConf's own `oc.env` is there for everybody in the process."""
OmegaConf.register_resolver(_VARIABLE, read_variable, replace=True)
_READS_VARIABLE = re.compile(r"(?<!\\)(?P<before>(?:\\\\)*\$\{\s*)oc\.env(?=\s*:)")
_KEYWORDS = {"continue": "continues"}
"""Keys that are keywords of Python, which no field can be called by."""
_NO_PARAMS = ("name", "description", "tracking", "seeds", "reference", "variants")


@dataclass(frozen=True)
class Loaded(Generic[ConfigT]):
    """A config that passed every check.

    Attributes:
        config: The config with every interpolation resolved.
        values: The whole config as plain values, defaults filled in, interpolations as they stand.
        texts: The same as YAML, by section.
        source: The file it came from, for error messages.
    """

    config: ConfigT
    values: Mapping[str, Any]
    texts: Mapping[str, str]
    source: str

    @property
    def recorded(self) -> str:
        """The whole config as YAML; ``${oc.env:...}`` stands as such, so that no secret is written.

        This text alone starts the same run again.
        """
        return "".join(self.texts.values())

    def flat(self) -> dict[str, Any]:
        """Every option by full key, as in `recorded`; what MLflow shows as parameters.

        What a run is called, how much of it is recorded and what it is held against are no properties of it, and would
        only differ in every comparison; its name and description are shown as such.
        """
        return dict(_flatten({key: value for key, value in self.values.items() if key not in _NO_PARAMS}))


class MissingFilesError(ConfigError):
    """Files that a config names are not here; all else about it is right.

    Args:
        missing: One line per file, with the places it was looked for.
        source: The file the config came from.
        loaded: The config.
    """

    def __init__(self, missing: Sequence[str], source: str, loaded: Loaded[Any]) -> None:
        super().__init__(missing, source)
        self.loaded = loaded


def regardless(load: Callable[P, Loaded[ConfigT]], *arguments: P.args, **named: P.kwargs) -> Loaded[ConfigT]:
    """Loads a config whether or not the files that it names are here: whoever reads them says so."""
    try:
        return load(*arguments, **named)
    except MissingFilesError as error:
        return error.loaded


def load_experiment(
    name: str | Path | Mapping[str, Any] | ExperimentConfig, overrides: Overrides = ()
) -> Loaded[ExperimentConfig]:
    """Loads an experiment by path, by name under ``experiments/``, or as values in the place of a file.

    Raises:
        UserError: If there is no such file.
        MissingFilesError: If all that is wrong are files that are not here.
        ConfigError: With every problem of the file, its variants and the overrides.
    """
    values, path = _experiment(name)
    if values.get("variants"):
        load_variants(path)
    return _load(ExperimentConfig, values, overrides, str(path))


def load_variants(name: str | Path, overrides: Overrides = ()) -> dict[str, Loaded[ExperimentConfig]]:
    """Loads an experiment once per variant, with what differs in place; without variants under its own name.

    Files that a variant names need not be here: the one who runs it says so.

    Raises:
        UserError: If there is no such file.
        ConfigError: With every problem of the file, its variants and the overrides.
    """
    values, path = _experiment(name)
    variants = values.pop("variants", None) or {path.stem: {}}
    if not isinstance(variants, dict) or not all(isinstance(value, dict) for value in variants.values()):
        raise ConfigError(["variants: must map names to what differs, such as `scratch: {seed: 1}`"], str(path))
    strange = [variant for variant in variants if not re.fullmatch(r"[\w.+-]+", str(variant))]
    if strange:
        raise ConfigError([f"variants[{v}]: a name is made of letters, digits and _ . + -" for v in strange], str(path))
    found: dict[str, Loaded[ExperimentConfig]] = {}
    problems: dict[str, tuple[str, ...]] = {}
    for variant, differing in variants.items():
        own = copy.deepcopy(values)
        for key, value in differing.items():
            assign(own, str(key), value)
        try:
            found[str(variant)] = regardless(_load, ExperimentConfig, own, overrides, str(path))
        except ConfigError as error:
            problems[str(variant)] = error.problems
    if problems:
        # What is wrong with every variant is wrong with what they share.
        everywhere = set.intersection(*(set(problems.get(variant, ())) for variant in map(str, variants)))
        alone = len(variants) == 1
        lines = [
            line if line in everywhere and not alone else f"variants[{variant}]: {line}"
            for variant, found_lines in problems.items()
            for line in found_lines
        ]
        raise ConfigError(list(dict.fromkeys(lines)), str(path))
    return found


def _experiment(name: str | Path | Mapping[str, Any] | ExperimentConfig) -> tuple[dict[str, Any], Path]:
    """The values an experiment's file gives, and where it lies."""
    if isinstance(name, (Mapping, ExperimentConfig)):
        values = dataclasses.asdict(name) if isinstance(name, ExperimentConfig) else copy.deepcopy(dict(name))
        _name_experiment(values)
        return values, Path("experiment")
    path = find_yaml(str(name), "experiments")
    folder, stem = topic(path, "experiments")
    values = _read(path)
    values.setdefault("name", stem)
    _name_experiment(values, folder)
    return values, path


def _name_experiment(values: dict[str, Any], folder: str | None = None) -> None:
    """Fills in the MLflow experiment where the config names none: what is recorded is the same in every process."""
    name, tracking = os.environ.get("MLFLOW_EXPERIMENT_NAME") or folder, values.setdefault("tracking", {})
    if name and isinstance(tracking, dict):
        tracking.setdefault("experiment", name)


def load_sweep(sweep: str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Loaded[SweepConfig]:
    """Loads a sweep by path, by name under ``sweeps/``, or as values in the place of a file.

    Raises:
        UserError: If there is no such file.
        ConfigError: With every problem of the file and the overrides.
    """
    if isinstance(sweep, Mapping):
        values, where = copy.deepcopy(dict(sweep)), "sweep"
    else:
        path = find_yaml(str(sweep), "sweeps")
        values, where = _read(path), str(path)
        values.setdefault("name", "/".join(dict.fromkeys(topic(path, "sweeps"))))
    own, experiment = (
        {field.name for field in dataclasses.fields(schema)} for schema in (SweepConfig, ExperimentConfig)
    )
    strange = [key for key, _ in _parse(overrides, []) if key.split(".")[0] in experiment - own]
    if strange:
        raise ConfigError([f"{key}: is a value of the experiment; give overrides.{key}=…" for key in strange], where)
    loaded = _load(SweepConfig, values, overrides, where)
    for name in ("overrides", "baselines"):  # the experiment they are given to reads the variables, and records which
        setattr(loaded.config, name, _with_variables(getattr(loaded.config, name), loaded.values[name]))
    return loaded


def _with_variables(resolved: Any, recorded: Any) -> Any:
    """Values as they are, but those of variables as they stand in the file: ``${oc.env:...}``."""
    if isinstance(resolved, dict):
        return {key: _with_variables(value, recorded[key]) for key, value in resolved.items()}
    return recorded if isinstance(recorded, str) and "${oc.env:" in recorded else resolved


def revise(experiment: Loaded[ExperimentConfig], overrides: Overrides) -> Loaded[ExperimentConfig]:
    """Returns the experiment with some values replaced, checked again."""
    problems: list[str] = []
    values, revised = copy.deepcopy(dict(experiment.values)), set[str]()
    for key, value in _parse(overrides, problems):
        assign(values, key, value)
        revised.add(key.partition(".")[0])
    if problems or not revised <= experiment.values.keys() or "${" in experiment.recorded + repr(overrides):
        # Unknown keys are reported with all that is wrong; an interpolation may refer to any section.
        return _load(ExperimentConfig, copy.deepcopy(dict(experiment.values)), overrides, experiment.source)
    part, plain = _typed(_part(frozenset(revised)), {key: values[key] for key in revised}, problems)
    config = dataclasses.replace(experiment.config, **{key: getattr(part, key) for key in revised})
    texts = {**experiment.texts, **_as_yaml(plain)}
    return _checked(Loaded(config, {**experiment.values, **plain}, texts, experiment.source), problems)


def load_text(text: str, overrides: Overrides = (), source: str = "config") -> Loaded[ExperimentConfig]:
    """Loads an experiment from YAML text."""
    values = _sections(text, source)
    _name_experiment(values)
    return _load(ExperimentConfig, values, overrides, source)


def load_recorded(text: str, overrides: Overrides = (), source: str = "config") -> Loaded[ExperimentConfig]:
    """Loads what a run recorded, also of an earlier version, which records arguments of parts it does not use."""
    values = _sections(text, source)
    _name_experiment(values)
    drop_unread(values, ExperimentConfig())
    return _load(ExperimentConfig, values, overrides, source)


def load_schedule(values: Mapping[str, Any], source: str) -> ExperimentConfig:
    """Loads the sections ``freeze``, ``optimizer`` and ``scheduler`` alone, for a module of somebody else's.

    Raises:
        ConfigError: With every problem.
    """
    problems: list[str] = []
    tree = OmegaConf.structured(ExperimentConfig)
    merge(tree, ExperimentConfig, values, "", problems)
    config = _resolve(tree, ExperimentConfig, problems)
    problems += [*_range_problems(config), *part_problems(config), *checks.freeze_problems(config.freeze)]
    if problems:
        raise ConfigError(problems, source)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"is not valid YAML: {error}"], str(path)) from None
    return _sections(text, str(path))


def _sections(text: str, source: str) -> dict[str, Any]:
    """The plain values of a YAML file, interpolations as they stand; no tag in it runs code."""
    try:
        loaded = OmegaConf.load(io.StringIO(text))
        values = OmegaConf.to_container(loaded, resolve=False)
    except Exception as error:  # what reads a tag such as !!int raises whatever a wrong value leads to
        raise ConfigError([f"is not valid YAML: {_reason(error)}"], source) from None
    if not isinstance(values, dict):
        raise ConfigError(["must hold sections such as `data:` and `backbone:`, not a list"], source)
    return typing.cast(dict[str, Any], values)


def _reason(error: Exception) -> str:
    if isinstance(error, (yaml.YAMLError, OmegaConfBaseException)):
        return one_line(error)
    what = "it is nested too deeply" if isinstance(error, RecursionError) else "a value does not fit its kind"
    return f"{what} ({one_line(error)})"


def _load(schema: type[ConfigT], values: dict[str, Any], overrides: Overrides, source: str) -> Loaded[ConfigT]:
    problems: list[str] = []
    for key, value in _parse(overrides, problems):
        assign(values, key, value)
    config, plain = _typed(schema, values, problems)
    return _checked(Loaded(config, plain, _as_yaml(plain), source), problems)


def _checked(loaded: Loaded[ConfigT], problems: list[str]) -> Loaded[ConfigT]:
    """The config, if beside the problems that came up on the way there is nothing wrong with it."""
    config: ConfigT = loaded.config
    problems += [*_range_problems(config), *part_problems(config)]
    # A section with a bad value was filled with defaults: what its combinations say would only confuse.
    bad_sections = {_section_of(problem) for problem in problems}
    problems += [line for line in checks.problems(config) if _section_of(line) not in bad_sections]
    missing: list[str] = [line for line in checks.missing(config) if _section_of(line) not in bad_sections]
    if problems:
        raise ConfigError([*problems, *missing], loaded.source)
    if missing:
        raise MissingFilesError(missing, loaded.source, loaded)
    return loaded


def _typed(schema: type[SchemaT], values: dict[str, Any], problems: list[str]) -> tuple[SchemaT, dict[str, Any]]:
    """The typed config, and the same as plain values with interpolations as they stand."""
    tree = OmegaConf.structured(schema)
    merge(tree, schema, _written(values, "", problems), "", problems)
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(tree, resolve=False))
    if "oc.env" in repr(plain):
        tree = OmegaConf.structured(schema)
        merge(tree, schema, _reading_by_us(plain), "", [])
    return _resolve(tree, schema, problems), plain


def _written(values: Any, key: str, problems: list[str]) -> Any:
    """Values of which each is a text: a name that is not UTF-8, from the command line, can't be recorded."""
    if isinstance(values, dict):
        whole = f"{key}." if key else ""
        return {name: _written(value, f"{whole}{name}", problems) for name, value in values.items()}
    if isinstance(values, list):
        return [_written(value, key, problems) for value in values]
    if not isinstance(values, str) or values.isascii():
        return values
    text = values.encode(errors="backslashreplace").decode().replace("\\udc", "\\x")  # as the bytes that were typed
    if text != values:
        problems.append(f"{key}: '{text}' is not UTF-8; rename what it names, such as with convmv -f latin1 -t utf8")
    return text


def _reading_by_us(values: Any) -> Any:
    """Values in which ``${oc.env:...}`` is read by `read_variable`, which hides what it reads."""
    if isinstance(values, dict):
        return {key: _reading_by_us(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_reading_by_us(value) for value in values]
    return _READS_VARIABLE.sub(rf"\g<before>{_VARIABLE}", values) if isinstance(values, str) else values


@functools.cache
def _part(names: frozenset[str]) -> type[Any]:
    """The schema of an experiment that has some sections only."""
    hints = typing.get_type_hints(ExperimentConfig)
    fields = [item for item in dataclasses.fields(ExperimentConfig) if item.name in names]
    return dataclasses.make_dataclass("Part", [(item.name, hints[item.name], copy.copy(item)) for item in fields])


def _as_yaml(plain: Mapping[str, Any]) -> dict[str, str]:
    """Each section as the YAML that it has in the whole."""
    return {key: OmegaConf.to_yaml(OmegaConf.create({key: value})) for key, value in plain.items()}


def as_mapping(overrides: Overrides) -> dict[str, Any]:
    """The overrides by full key.

    Raises:
        ConfigError: If one is no ``key=value``.
    """
    problems: list[str] = []
    values = dict(_parse(overrides, problems))
    if problems:
        raise ConfigError(problems, "overrides")
    return values


def override_texts(overrides: Overrides) -> list[str]:
    """The overrides as they are typed: ``key=value``."""
    return [f"{key}={value}" for key, value in overrides.items()] if isinstance(overrides, Mapping) else list(overrides)


def _parse(overrides: Overrides, problems: list[str]) -> Iterator[tuple[str, Any]]:
    for key, value in _keys_and_values(overrides, problems):
        yield _KEYWORDS.get(key, key), value


def _keys_and_values(overrides: Overrides, problems: list[str]) -> Iterator[tuple[str, Any]]:
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
            value = plain["value"]
        except Exception as error:  # as in `_sections`
            problems.append(f"{key}: '{text}' is not valid YAML: {_reason(error)}")
            continue
        yield key.strip(), value


def _section_of(problem: str) -> str:
    return re.split(r"[.:\[]", problem, maxsplit=1)[0]


def _resolve(tree: DictConfig, schema: type[SchemaT], problems: list[str]) -> SchemaT:
    """The typed config with interpolations resolved; one that fails becomes a problem and takes its default.

    A wrong interpolated value is reported by its key only: it may come from a variable that holds a secret.
    """
    while True:
        try:
            return typing.cast(SchemaT, OmegaConf.to_object(tree))
        except OmegaConfBaseException as error:
            defaults = OmegaConf.structured(schema)  # a trial's config is made in each trial: only where it is wanted
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
            yield from outside(value, path, item.metadata)


def _flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
