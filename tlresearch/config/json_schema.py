"""JSON Schemas of experiments and of sweeps, for editors that complete and check YAML. No torch.

Made from the dataclasses of the schema, so that an option stands in one place. A schema accepts whatever the loader
accepts; combinations, files and the names of the user's own code are left to the loader.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tlresearch.config.merging import hints_of
from tlresearch.config.parts import PartConfig, Registry
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig

FILE = "schema.json"
"""Name of a schema's file, at the top of ``experiments/`` and of ``sweeps/``."""
SCHEMAS: Mapping[str, type] = {"experiments": ExperimentConfig, "sweeps": SweepConfig}

Schema = dict[str, Any]

_BY_FULL_KEY = ("overrides", "enqueue", "baselines", "variants", "space")
"""Options that hold values of an experiment by full key."""
_VERSION = "http://json-schema.org/draft-07/schema#"  # what editors of YAML know best
_INTERPOLATION: Schema = {"type": "string", "pattern": r"\$\{"}
_PLAIN: Mapping[Any, Schema] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    str: {"type": ["string", "number"]},  # a number is taken as text where text is declared
    type(None): {"type": "null"},
    Any: {},
}


def json_schema(kind: str) -> Schema:
    """Returns the JSON Schema of ``experiments`` or ``sweeps``."""
    title = {"experiments": "An experiment of tlresearch", "sweeps": "A sweep of tlresearch"}[kind]
    builder = _Builder()
    whole = builder.section(SCHEMAS[kind])
    return {"$schema": _VERSION, "title": title, **whole, "definitions": builder.definitions}


def write_schemas(folder: Path) -> list[Path]:
    """Writes both schemas below a folder, each at the top of the YAML it is for; returns the files."""
    files = []
    for kind in SCHEMAS:
        file = folder / kind / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(as_text(kind), encoding="utf-8")
        files.append(file)
    return files


def as_text(kind: str) -> str:
    """Returns a schema as it is written."""
    return json.dumps(json_schema(kind), indent=1) + "\n"


def first_line(below: int) -> str:
    """Returns the comment by which a YAML names its schema.

    Args:
        below: How many folders lie between ``experiments/`` or ``sweeps/`` and the file.
    """
    return f"# yaml-language-server: $schema={'../' * below}{FILE}\n"


def full_keys(kind: str) -> dict[str, Schema]:
    """Returns the schema of every option of ``experiments`` or ``sweeps`` by its full key."""
    builder = _Builder()
    return {key: builder.option(item, hint) for key, (item, hint) in _leaves(SCHEMAS[kind]).items()}


class _Builder:
    """Makes schemas of dataclasses; what is needed in several places is a definition, which these refer to."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}

    def section(self, schema: type) -> Schema:
        """A section: its options, and no others."""
        hints = hints_of(schema)
        properties = {item.name: self.option(item, hints[item.name]) for item in dataclasses.fields(schema)}
        whole: Schema = {"type": "object", "description": (schema.__doc__ or "").strip()}
        registry: Registry | None = getattr(schema, "registry", None)
        if registry is None:
            return {**whole, "properties": properties, "additionalProperties": False}
        properties |= {item.name: self.option(item, hint) for item, hint in registry.arguments()}
        # What a dotted path leads to may take any argument.
        named = {"properties": {registry.key: {"pattern": r"^[^/]*\.[^/]*$"}}, "required": [registry.key]}
        known = {"propertyNames": {"enum": list(properties)}}
        section = {**whole, "properties": properties, "if": named, "then": {}, "else": known}
        return {"anyOf": [{"type": "string"}, section]} if issubclass(schema, PartConfig) else section

    def option(self, item: dataclasses.Field[Any], hint: Any) -> Schema:
        """One option: its type with range, meaning, unit and default."""
        about = item.metadata
        unit = f" ({about['unit']})" if about.get("unit") else ""
        schema = self._by_full_key(item.name) if item.name in _BY_FULL_KEY else self._typed(hint, about)
        said: Schema = {"description": f"{about.get('meaning', '')}{unit}"}
        if item.default is not dataclasses.MISSING and not dataclasses.is_dataclass(item.default):
            said["default"] = item.default
        # What stands beside a reference is not read.
        return {"allOf": [schema], **said} if "$ref" in schema else {**schema, **said}

    def _defined(self, name: str, make: Callable[[], Schema]) -> Schema:
        if name not in self.definitions:
            self.definitions[name] = {}  # what it is made of may refer to it
            self.definitions[name] = make()
        return {"$ref": f"#/definitions/{name}"}

    def _typed(self, hint: Any, about: Mapping[str, Any]) -> Schema:
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            kind = typing.cast(type, hint)
            return self._defined(kind.__name__, lambda: self.section(kind))
        if origin is list:
            return {"type": "array", "items": self._typed(inner[0], {})}
        if origin is dict:
            return {"type": "object", "additionalProperties": self._typed(inner[1], {})}
        if origin in (typing.Union, types.UnionType):
            choices = [self._typed(part, about) for part in inner]
        elif origin is typing.Literal:
            choices = [{"enum": list(inner)}]
        else:
            choices = [{**_PLAIN[hint], **(_range(about) if hint in (int, float) else {})}]
        if any(choice == {} or "string" in choice.get("type", ()) for choice in choices):
            return choices[0] if len(choices) == 1 else {"anyOf": choices}
        return {"anyOf": [*choices, _INTERPOLATION]}

    def _by_full_key(self, name: str) -> Schema:
        """An option that holds values of an experiment."""
        if name == "space":
            dimension = self._defined("SpaceConfig", lambda: self.section(SpaceConfig))
            return _open(dict.fromkeys(_leaves(ExperimentConfig), dimension), dimension)
        values = self._defined("values", self._values)
        if name == "enqueue":
            return {"type": "array", "items": values}
        return values if name == "overrides" else {"type": "object", "additionalProperties": values}

    def _values(self) -> Schema:
        """Values by full key, or by section as they stand in an experiment."""
        hints = typing.get_type_hints(ExperimentConfig)
        items = [item for item in dataclasses.fields(ExperimentConfig) if item.name not in _BY_FULL_KEY]
        properties = {key: self.option(item, hint) for key, (item, hint) in _leaves(ExperimentConfig).items()}
        return _open({**properties, **{item.name: self.option(item, hints[item.name]) for item in items}}, {})


def _open(properties: Mapping[str, Schema], free: Schema) -> Schema:
    """A mapping whose names are full keys, also those inside mappings of an experiment, such as ``data.options.x``."""
    mappings = [key for key, (_, hint) in _leaves(ExperimentConfig).items() if typing.get_origin(hint) is dict]
    return {
        "type": "object",
        "properties": dict(properties),
        "patternProperties": {rf"^{re.escape(key)}\.": free for key in mappings},
        "additionalProperties": False,
    }


def _leaves(schema: type, prefix: str = "") -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Every option of an experiment by its full key, with its type."""
    hints = typing.get_type_hints(schema)
    leaves: dict[str, tuple[dataclasses.Field[Any], Any]] = {}
    registry: Registry | None = getattr(schema, "registry", None)
    if registry is not None:
        leaves |= {f"{prefix}{item.name}": (item, hint) for item, hint in registry.arguments()}
    for item in dataclasses.fields(schema):
        hint, key = hints[item.name], f"{prefix}{item.name}"
        inner = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
        if inner and typing.get_origin(hint) not in (list, dict):
            leaves |= _leaves(typing.cast(type, inner[0]), f"{key}.")
            if issubclass(typing.cast(type, inner[0]), PartConfig):
                leaves[key] = (item, hint)
        elif item.name not in _BY_FULL_KEY:
            leaves[key] = (item, hint)
    return leaves


def _range(about: Mapping[str, Any]) -> Schema:
    names = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum", "below": "exclusiveMaximum"}
    return {word: about[name] for name, word in names.items() if about.get(name) is not None}
