"""Parts: whatever a config names as `{name: …, arguments}`; what is known of a name, what is wrong, and the object.

A name is short, from a registry of `tlresearch.config.catalogue`, or the dotted path of any class or function. The
arguments of a short name are checked against its dataclass, without torch. Those of a dotted path are checked against
the signature of what it names, which is imported for that: only where a run begins.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import traceback
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from omegaconf import OmegaConf

from tlresearch.base import handed
from tlresearch.base.code import origin
from tlresearch.base.errors import ConfigError, UserError, load_object, nearest, one_line
from tlresearch.config.merging import merge, type_name
from tlresearch.config.setting import outside


@dataclass
class Nothing:
    """No arguments."""


@dataclass(frozen=True)
class Part:
    """What is known of a part with a short name.

    Attributes:
        path: Dotted path of its class or function; empty for what needs no making: a task's own loss.
        takes: Dataclass of its arguments; ``None`` leaves them to the library that it is of. A method `problems` of it
            says what no single field can.
        of: Tasks that it is for; empty for any.
    """

    path: str = ""
    takes: type | None = Nothing
    of: Sequence[str] = ()


@dataclass(frozen=True)
class Registry:
    """All that is known of one kind of part.

    Attributes:
        what: What such a part is called in messages.
        parts: Parts by short name; one that ends in ``/`` stands for all names that begin so.
        own: What a dotted path may lead to; empty where none is taken.
        gives: Dotted path of the class that a part is of once it is made; empty for any.
        fills: Arguments that tlresearch gives itself, so that a config need not.
        key: The key that names the part.
        gets: With how many arguments such a part is called. If not 0, a function is the part itself, and not what makes
            it: the arguments of a config are bound to it.
        by_signature: Whether arguments are those of the signature; what has another way to say them checks them itself.
    """

    what: str
    parts: Mapping[str, Part]
    own: str = ""
    gives: str = ""
    fills: Sequence[str] = ()
    key: str = "name"
    gets: int = 0
    by_signature: bool = True

    def __contains__(self, name: str) -> bool:
        """Whether it is a short name."""
        return self.part(name) is not None

    @property
    def names(self) -> tuple[str, ...]:
        """The short names."""
        return tuple(self.parts)

    @property
    def listing(self) -> str:
        """The names in words, for errors and the page of options."""
        shown = [f"{name}<model>" if name.endswith("/") else name for name in self.parts]
        return ", ".join([*shown, *([f"or the dotted path of {self.own}"] if self.own else [])])

    def part(self, name: str) -> Part | None:
        """Returns what is known of a short name; ``None`` for any other."""
        family = f"{name.partition('/')[0]}/"
        return self.parts.get(family if "/" in name else name)

    def path(self, name: str) -> str:
        """Returns the dotted path that a name stands for: its own, where it is none of the short names."""
        part = self.part(name)
        return part.path if part is not None else name

    def is_default(self, name: str) -> bool:
        """Whether a name stands for what is there without being made."""
        part = self.part(name)
        return part is not None and not part.path

    def taken(self, name: str, given: Iterable[str]) -> list[str]:
        """Returns which of the arguments that tlresearch can give a part takes."""
        parameters = _parameters(self.load(name, self.what))
        return [argument for argument in given if parameters is None or argument in parameters]

    def load(self, name: str, key: str) -> Any:
        """Imports what a name stands for.

        Raises:
            UserError: If it cannot be had; the text begins with the key.
        """
        return load_object(self.path(name), key, ours=name in self)

    def readers(self, argument: str) -> dict[str, dataclasses.Field[Any]]:
        """Returns the short names that take an argument, with its field."""
        return {
            name: item
            for name, part in self.parts.items()
            for item in (dataclasses.fields(part.takes) if part.takes else ())
            if item.name == argument
        }

    def arguments(self) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
        """Yields every argument of the short names with its type."""
        for part in self.parts.values():
            hints = typing.get_type_hints(part.takes) if part.takes else {}
            for item in dataclasses.fields(part.takes) if part.takes else ():
                yield item, hints[item.name]

    def type_of(self, argument: str) -> Any:
        """Returns the type of an argument of any of the parts; ``None`` if there is none."""
        for name in self.readers(argument):
            takes = self.parts[name].takes
            return typing.get_type_hints(takes)[argument]
        return None


class Named(Protocol):
    """A section of a config that names a part."""

    registry: ClassVar[Registry]
    options: dict[str, Any]


@dataclass
class PartConfig:
    """A part by name; a text alone is its name. Subclasses say of which registry."""

    registry: ClassVar[Registry]
    is_part: ClassVar[bool] = True

    name: str = field(default="", metadata={"meaning": "Short name, or dotted path.", "unit": ""})
    options: dict[str, Any] = field(default_factory=dict, metadata={"meaning": "Its arguments.", "unit": ""})


def name_of(section: Named) -> str:
    """Returns the name that a section gives."""
    return str(getattr(section, section.registry.key))


def sections(config: Any, prefix: str = "") -> Iterator[tuple[str, Named]]:
    """Yields every section that names a part, with its full key."""
    for item in dataclasses.fields(config):
        value, path = getattr(config, item.name), f"{prefix}{item.name}"
        entries = [(path, value)]
        if isinstance(value, list):
            entries = [(f"{path}[{number}]", entry) for number, entry in enumerate(value)]
        for key, entry in entries:
            if dataclasses.is_dataclass(entry):
                if hasattr(entry, "registry"):
                    yield key, typing.cast(Named, entry)
                yield from sections(entry, f"{key}.")


def is_own(section: Named) -> bool:
    """Whether a section names its part by dotted path."""
    return name_of(section) not in section.registry


def any_own(config: Any) -> bool:
    """Whether a config names any part by dotted path."""
    return any(is_own(section) for _, section in sections(config))


def part_problems(config: Any) -> Iterator[str]:
    """Yields what is wrong with the parts of a config, as far as that can be seen without importing any."""
    for key, section in sections(config):
        yield from section_problems(key, section)


def section_problems(key: str, section: Named) -> Iterator[str]:
    """Yields what is wrong with one part: an unknown name, or arguments that a short name doesn't take."""
    registry, name = section.registry, name_of(section)
    part = registry.part(name)
    if part is None:
        if not registry.own or "." not in name or "/" in name:
            yield f"{key}.{registry.key}: '{name}' is unknown{nearest(name, registry.names)}; known: {registry.listing}"
    elif part.takes is not None:
        keys = [item.name for item in dataclasses.fields(typing.cast(Any, section)) if item.name != "options"]
        yield from _argument_problems(key, section, part.takes, keys)


def _argument_problems(key: str, section: Named, takes: type, keys: Sequence[str]) -> Iterator[str]:
    registry, name = section.registry, name_of(section)
    fields = [item.name for item in dataclasses.fields(takes)]
    for argument in section.options:
        if argument in fields:
            continue
        readers = list(registry.readers(argument))
        if readers:
            yield f"{key}.{argument}: is only read by {_and(readers)}, but {key}.{registry.key} is {name}"
        else:
            has = f"takes {', '.join(fields)}" if fields else "takes no arguments"
            yield f"{key}.{argument}: unknown key{nearest(argument, [*keys, *fields])}; {name} {has}"
    known = {argument: value for argument, value in section.options.items() if argument in fields}
    problems: list[str] = []
    arguments = _typed(takes, known, f"{key}.", problems)
    for item in dataclasses.fields(takes):
        value = getattr(arguments, item.name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            problems += outside(value, f"{key}.{item.name}", item.metadata)
    yield from problems
    if not problems and hasattr(arguments, "problems"):
        yield from (f"{key}.{line}" for line in arguments.problems())


def _typed(takes: type, values: Mapping[str, Any], prefix: str, problems: list[str]) -> Any:
    tree = OmegaConf.structured(takes)
    merge(tree, takes, {name: value for name, value in values.items() if value is not None}, prefix, problems)
    return OmegaConf.to_object(tree)


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def drop_unread(values: Mapping[str, Any], config: Any) -> None:
    """Takes out of a recorded config what its parts don't read, but another part of the same kind does.

    Args:
        values: The recorded config, as plain values; changed.
        config: A config of its schema, which says what its sections are.
    """
    for key, section in sections(config):
        recorded = values.get(key)
        registry = section.registry
        part = registry.part(str(recorded.get(registry.key))) if isinstance(recorded, dict) else None
        if recorded is None or part is None or part.takes is None:
            continue
        read = {item.name for item in dataclasses.fields(part.takes)} | {*vars(section)}
        for argument in [argument for argument in recorded if argument not in read and registry.readers(argument)]:
            del recorded[argument]


def check_own(config: Any, source: str) -> None:
    """Imports what a config names by dotted path, and checks the arguments against its signature.

    Raises:
        ConfigError: With every problem.
    """
    problems: list[str] = []
    for key, section in sections(config):
        if is_own(section):
            problems += _own_problems(key, section.registry.key, name_of(section), section.options, section.registry)
    if problems:
        raise ConfigError(problems, source)


def _own_problems(key: str, name_key: str, name: str, options: Mapping[str, Any], registry: Registry) -> Iterator[str]:
    try:
        target = load_object(name, f"{key}.{name_key}")
    except UserError as error:
        yield str(error)
        return
    if name.startswith(handed.PREFIX):
        return
    parameters = _parameters(target)
    if parameters is None or not registry.by_signature:
        return
    if registry.gets and inspect.isroutine(target):
        parameters = dict(list(parameters.items())[registry.gets :])
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        parameter.name: parameter
        for parameter in parameters.values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY)
    }
    for argument, value in options.items():
        if argument not in named and not takes_any:
            has = f"it takes {', '.join(named)}" if named else "it takes none"
            yield f"{key}.{argument}: {name} has no such argument{nearest(argument, [*named])}; {has}"
        elif argument in named and (wrong := _wrong_type(named[argument].annotation, value)):
            yield f"{key}.{argument}: must be {wrong}, but got {value!r}"
        yield from _nested_problems(f"{key}.{argument}", value, registry)
    for argument, parameter in named.items():
        if parameter.default is parameter.empty and argument not in options and argument not in registry.fills:
            yield f"{key}.{argument}: is needed by {name}"


def _nested_problems(key: str, value: Any, registry: Registry) -> Iterator[str]:
    if isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _nested_problems(f"{key}[{number}]", entry, registry)
    elif _is_part(value):
        yield from _own_problems(key, "name", value["name"], _arguments_in(value), registry)


def _is_part(value: Any) -> bool:
    """Whether an argument of a part by dotted path is such a part itself."""
    return isinstance(value, Mapping) and isinstance(value.get("name"), str) and "." in value["name"]


def _arguments_in(value: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: entry for name, entry in value.items() if name not in ("name", "options")}
    return {**(value.get("options") or {}), **flat}


def _parameters(target: Any) -> Mapping[str, inspect.Parameter] | None:
    if not callable(target):
        return None
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):  # of code in C
        return None


def _wrong_type(annotation: Any, value: Any) -> str:
    """What an argument must be, if it is annotated as a plain type and the value is of another; else nothing."""
    plain = {"int": int, "float": float, "str": str, "bool": bool}
    hint = plain.get(annotation) if isinstance(annotation, str) else annotation
    fits = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}
    if hint not in fits or value is None or _is_part(value):
        return ""
    right = isinstance(value, fits[hint]) and (hint is bool or not isinstance(value, bool))
    return "" if right else type_name(hint)


def make(section: Named, key: str, *positional: Any, **given: Any) -> Any:
    """Makes the object that a section names.

    Args:
        section: The section.
        key: Its full key, for errors.
        positional: What the part gets first.
        given: Further arguments, of which it gets those that it takes and the section doesn't give.

    Raises:
        ConfigError: If it cannot be made, or is of another class than its registry says.
    """
    registry, name = section.registry, name_of(section)
    part = registry.part(name)
    target = registry.load(name, f"{key}.{registry.key}")
    if part is not None and part.takes is not None:
        typed = _typed(part.takes, section.options, f"{key}.", [])
        values = {item.name: getattr(typed, item.name) for item in dataclasses.fields(typed)}
        # Unset (null, or an empty list) leaves the part's own default.
        arguments = {argument: value for argument, value in values.items() if value is not None and value != []}
    else:
        arguments = {argument: _made(f"{key}.{argument}", value, given) for argument, value in section.options.items()}
    if name.startswith(handed.PREFIX) and not _to_be_called(target, registry):
        return _of_its_class(target, registry, name, key)
    if registry.gets and part is None and inspect.isroutine(target):
        return functools.partial(target, **arguments)
    return _of_its_class(called(target, name, key, positional, arguments, given), registry, name, key)


def _to_be_called(target: Any, registry: Registry) -> bool:
    """Whether an object that was handed over makes the part, and is not the part itself."""
    bound = isinstance(target, functools.partial)
    makes = inspect.isclass(target.func if bound else target)
    return makes or (not registry.gets and (bound or inspect.isroutine(target)))


def _of_its_class(made: Any, registry: Registry, name: str, key: str) -> Any:
    if registry.gives and not isinstance(made, load_object(registry.gives, key, ours=True)):
        raise ConfigError(
            [f"{key}.{registry.key}: {name} must give a {registry.gives}, but gave {type(made).__name__}"], name
        )
    return made


def _made(key: str, value: Any, given: Mapping[str, Any]) -> Any:
    """An argument with the parts in it made; what a dotted path leads to and cannot be called is taken as it is."""
    if isinstance(value, list):
        return [_made(f"{key}[{number}]", entry, given) for number, entry in enumerate(value)]
    if not _is_part(value):
        return value
    target = load_object(value["name"], f"{key}.name")
    if not callable(target):
        return target
    inner = {name: _made(f"{key}.{name}", entry, given) for name, entry in _arguments_in(value).items()}
    return called(target, value["name"], key, (), inner, given)


def called(
    target: Any,
    name: str,
    key: str,
    positional: Sequence[Any],
    arguments: Mapping[str, Any],
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Calls what a config names; an error of it becomes one line that names the key.

    Args:
        target: A class or function.
        name: Its name in the config.
        key: The key of the section.
        positional: What it gets first.
        arguments: Arguments that the config gives.
        given: Further ones, of which it gets those that it takes.

    Raises:
        ConfigError: If it raises.
    """
    parameters = _parameters(target)
    if parameters is None:
        given = {}
    else:
        first = list(parameters)[: len(positional)]
        given = {argument: v for argument, v in given.items() if argument in parameters and argument not in first}
    try:
        return target(*positional, **{**given, **arguments})
    except UserError:
        raise
    except Exception as error:  # of whatever code: the config is what can be changed
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        reason = f"{type(error).__name__}: {one_line(error, 300)}"
        raise ConfigError([f"{key}: {name} cannot be made with these arguments: {reason} ({place})"], name) from error


def identities(config: Any) -> dict[str, dict[str, Any]]:
    """Returns what identifies each part of a config that is named by dotted path, by its key.

    Returns:
        ``path``, ``arguments``, and ``source``: library and version, or a hash over the files of the user's that define
        it, with those they import. Parts within a part are found in its arguments, and counted in its source.
    """
    return dict(_identified(sections(config)))


def identities_of(entries: Sequence[Named], key: str) -> dict[str, dict[str, Any]]:
    """Returns what identifies the parts of a list, as `identities` does."""
    return dict(_identified((f"{key}[{number}]", entry) for number, entry in enumerate(entries)))


def _identified(entries: Iterable[tuple[str, Named]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, section in entries:
        name, options = name_of(section), section.options
        if is_own(section) and not name.startswith(handed.PREFIX):
            sources = dict.fromkeys(origin(path) for path in (name, *_paths(options)))
            yield key, {"path": name, "arguments": options, "source": ", ".join(sources)}


def _paths(value: Any) -> Iterator[str]:
    """Dotted paths of the parts in an argument."""
    if _is_part(value):
        yield value["name"]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for entry in inner:
        yield from _paths(entry)
