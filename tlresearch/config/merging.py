"""Plain values into a structured config, key by key, so that one bad key does not hide the next. No torch."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
import warnings
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tlresearch.base.errors import nearest

_ONE_VALUE = ("options", "tags", "shift")
"""Mappings that are replaced as a whole."""
_FULL_KEYS = {"overrides": 1, "baselines": 2}
"""Sections of a sweep, and how many names lead into them; what follows is a full key of the experiment."""


def merge(node: DictConfig, schema: type, values: Any, prefix: str, problems: list[str]) -> None:
    """Puts plain values into a structured node, key by key, so that one bad key does not hide the next."""
    if hasattr(schema, "registry"):
        values = _arguments_in_options(schema, values)
    if not isinstance(values, Mapping):
        known = ", ".join(f.name for f in dataclasses.fields(schema))
        problems.append(f"{prefix.rstrip('.')}: is a section with the keys {known}, but got {values!r}")
        return
    hints = hints_of(schema)
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
            merge(node[key], section, value, f"{path}.", problems)


@functools.cache
def hints_of(schema: type) -> dict[str, Any]:
    """Returns the type of each key of a section."""
    return {name: hint for name, hint in typing.get_type_hints(schema).items() if name not in ("registry", "is_part")}


def _arguments_in_options(schema: Any, values: Any) -> Any:
    """A section that names a part, with the part's arguments, which may stand beside the name, in its options.

    A text alone is the name, where a section is nothing but a part; null beside the name takes an argument away.
    """
    if isinstance(values, str) and getattr(schema, "is_part", False):
        return {schema.registry.key: values}
    if not isinstance(values, Mapping) or not isinstance(values.get("options", {}), Mapping):
        return values
    part = schema.registry.part(str(values.get(schema.registry.key)))
    if part is not None and part.takes is None:
        return values  # its arguments are not known here, so that a misspelt key would be taken for one
    own = {key: value for key, value in values.items() if key in hints_of(schema)}
    arguments = {str(key): value for key, value in values.items() if key not in own}
    kept = {key: value for key, value in own.get("options", {}).items() if key not in arguments}
    given = {key: value for key, value in arguments.items() if value is not None}
    return {**own, "options": {**kept, **given}} if arguments else own


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets a value by its dotted key; a mapping is merged into the section, whatever else is in the way replaced."""
    *sections, last = key.split(".")
    depth = _FULL_KEYS.get(sections[0], len(sections)) if sections else 0
    if len(sections) > depth:
        sections, last = sections[:depth], key.split(".", depth)[-1]
    for section in sections:
        below = values.get(section)
        if not isinstance(below, dict):
            below = values[section] = {}
        values = below
    if len(last.split(".")) > 1:
        values.pop(last, None)  # so that it comes behind all others, and wins
    _put(values, last, value)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    # The options of one backbone, and the shifted sets of one source, are nothing to another.
    if isinstance(value, Mapping) and value and isinstance(values.get(key), dict) and key not in _ONE_VALUE:
        for name, entry in value.items():
            _put(values[key], str(name), entry)
    else:
        values[key] = value


def _merge_list(node: DictConfig, key: str, section: type, value: Any, path: str, problems: list[str]) -> None:
    if not isinstance(value, list):
        problems.append(f"{path}: must be a list, but got {value!r}")
        return
    for index, entry in enumerate(value):
        element = OmegaConf.structured(section)
        merge(element, section, entry, f"{path}[{index}].", problems)
        node[key].append(element)


def _merge_dict(node: DictConfig, key: str, section: type, value: Any, path: str, problems: list[str]) -> None:
    if not isinstance(value, Mapping):
        problems.append(f"{path}: must map names to sections, but got {value!r}")
        return
    for name, entry in value.items():
        element = OmegaConf.structured(section)
        merge(element, section, entry, f"{path}[{name}].", problems)
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
        problems.append(f"{path}: must be {type_name(hint)}, but got {value!r}{close}")


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


def type_name(hint: Any) -> str:
    """Says in words what a value must be."""
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
        return " or ".join(type_name(part) for part in inner)
    if origin is list:
        return f"a list, each entry {type_name(inner[0])}" if inner[0] is not Any else "a list"
    return "a mapping" if origin is dict else str(hint)
