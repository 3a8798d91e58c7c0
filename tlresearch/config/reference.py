"""Every option with its type, default, unit and meaning, read off the schema. No torch."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tlresearch.config.merging import hints_of
from tlresearch.config.parts import Registry
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.sweep_schema import SweepConfig
from tlresearch.show import markdown
from tlresearch.show.elements import Column, Section, Table, Text
from tlresearch.show.page import Page

_SCHEMAS = (("Experiment", ExperimentConfig), ("Sweep", SweepConfig))


class Option(NamedTuple):
    """One option: full key, type in words, default, and meaning with its unit."""

    key: str
    kind: str
    default: str
    meaning: str


def options(schema: type = ExperimentConfig, prefix: str = "") -> Iterator[Option]:
    """Yields every option of a schema in its order; lists and mappings of sections as ``key[]`` and ``key.<name>``."""
    hints = hints_of(schema)
    for field in dataclasses.fields(schema):
        if field.name == "options" and (registry := getattr(schema, "registry", None)):
            yield from _arguments(registry, prefix)
        hint, key = hints[field.name], f"{prefix}{field.name}"
        inner = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
        if inner:
            mark = {list: "[]", dict: ".<name>"}.get(typing.get_origin(hint), "")
            yield from options(typing.cast(type, inner[0]), f"{key}{mark}.")
            continue
        yield _option(key, hint, field)


def _arguments(registry: Registry, prefix: str) -> Iterator[Option]:
    """The arguments of parts with short names; the same argument of several parts is one option."""
    options: dict[Option, list[str]] = {}
    for name, part in registry.parts.items():
        for field in dataclasses.fields(part.takes) if part.takes else ():
            option = _option(f"{prefix}{field.name}", hints_of(typing.cast(type, part.takes))[field.name], field)
            options.setdefault(option, []).append(name)
    for option, names in options.items():
        yield option._replace(meaning=f"Of {', '.join(names)}: {option.meaning[:1].lower()}{option.meaning[1:]}")


def _option(key: str, hint: Any, field: dataclasses.Field[Any]) -> Option:
    unit = f" ({field.metadata['unit']})" if field.metadata["unit"] else ""
    return Option(key, _words(hint), _default(field), f"{field.metadata['meaning']}{unit}")


def page() -> Page:
    """All options of experiments and sweeps."""
    sections = (Section(title, (_table(list(options(schema))),)) for title, schema in _SCHEMAS)
    return Page("Options", tuple(sections))


def as_markdown() -> str:
    """Returns the page ``docs/configuration.md``, with a table for each section of the YAML."""
    intro = Text(
        "Every option of an experiment and of a sweep, as `tlresearch config` lists them.\n"
        "This page is generated: `python -m tlresearch.config.reference > docs/configuration.md`."
    )
    parts = [Section("", (intro,))]
    for title, schema in _SCHEMAS:
        sections: dict[str, list[Option]] = {"": []}
        for option in options(schema):
            section, dot, _ = option.key.partition(".")
            sections.setdefault(section if dot else "", []).append(option)
        blocks = [markdown.table(_table(sections.pop("")))]
        for section, listed in sections.items():
            blocks += [f"### {section}", markdown.table(_table(listed))]
        parts.append(Section(title, (Text("\n\n".join(blocks)),)))
    return markdown.render(Page("Configuration", tuple(parts)))


def _table(listed: Sequence[Option]) -> Table:
    columns = (Column("key", code=True), Column("type"), Column("default", code=True), Column("meaning"))
    return Table(columns, tuple(listed))


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING or value == "":
        return "empty"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(str(choice) for choice in inner)
    if origin is list:
        return f"list of {_words(inner[0])}"
    if origin is dict:
        return "mapping"
    if inner:
        return " or ".join(_words(part) for part in inner)
    names = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "true or false",
        type(None): "null",
        Any: "value",
    }
    return names.get(hint, str(hint))


if __name__ == "__main__":
    print(as_markdown(), end="")
