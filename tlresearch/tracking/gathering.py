"""Calls that wait are made together: one request costs about as much as what twenty points cost in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from tlresearch.tracking.calls import Call

# In whatever order these are made, the run holds the same in the end. Texts go first: to find the place of the first
# artifact MLflow reads the whole run, which takes least before it has params and points.
_TOGETHER = ("texts", "datasets", "batch")


def gathered(calls: Iterable[Call]) -> Iterator[tuple[Call, int]]:
    """Yields fewer calls that write the same, in order where that matters.

    Args:
        calls: Calls of one run, in order.

    Yields:
        A call, and how many of the given ones have been made as soon as this one has: 0 as long as more belong to it.
    """
    for together, some in groupby(calls, lambda call: call.what in _TOGETHER):
        if not together:
            yield from ((call, 1) for call in some)
            continue
        section = list(some)
        merged = _merged(section)
        yield from ((call, 0) for call in merged[:-1])
        yield merged[-1], len(section)


def _merged(calls: Iterable[Call]) -> list[Call]:
    """One call of each kind; a param that is given another value later stays in a call of its own, as that is told."""
    found: dict[str, dict[str, Any]] = {}
    apart: list[Call] = []
    for call in calls:
        about = found.setdefault(call.what, {})
        params = about.get("params", {})
        if any(params.get(key, value) != value for key, value in call.about.get("params", {}).items()):
            apart.append(call)
            continue
        for key, value in call.about.items():
            about[key] = {**about.get(key, {}), **value} if isinstance(value, dict) else [*about.get(key, ()), *value]
    return [*(Call(what, found[what]) for what in _TOGETHER if what in found), *apart]
