"""Objects that a Python program hands over where a config has names: found by name while a run lasts, never stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

PREFIX = "object."
"""Begins the name of an object in a config: what follows says of which class or function it is."""


@dataclass(frozen=True)
class Handed:
    """What was handed over.

    Attributes:
        objects: The objects by their names in the config.
        described: What is known of each, by the config's key: path and hash of the source. Recorded, and part of what
            makes a run the same run.
    """

    objects: Mapping[str, Any] = field(default_factory=dict)
    described: Mapping[str, str] = field(default_factory=dict)


_NOTHING = Handed()
_current: ContextVar[Handed] = ContextVar("handed", default=_NOTHING)  # nobody changes it


@contextlib.contextmanager
def present(handed: Handed) -> Iterator[None]:
    """Has objects found by their names while the context lasts."""
    token = _current.set(handed)
    try:
        yield
    finally:
        _current.reset(token)


def described() -> Mapping[str, str]:
    """What was handed over to the run under way, by key."""
    return _current.get().described


def find(name: str) -> Any:
    """The object of a name.

    Raises:
        KeyError: If it is not here: another program handed it over.
    """
    return _current.get().objects[name]
