"""How an option is declared: a dataclass field with meaning, unit and range. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any


def setting(
    default: Any,
    meaning: str,
    *,
    unit: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with its one-line meaning, unit and range, kept where errors and docs can read them."""
    about = {
        "meaning": meaning,
        "unit": unit,
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "below": below,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=about)
    if isinstance(default, type):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


def outside(value: float, path: str, about: Mapping[str, Any]) -> Iterator[str]:
    """Yields the bounds of a setting that a value does not keep."""
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
