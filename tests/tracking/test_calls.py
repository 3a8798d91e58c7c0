"""Merged calls: fewer of them, and the run that they write is the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.tracking.outages import content
from tlresearch.tracking.calls import Call, Target, merged, perform
from tlresearch.tracking.store import connect

POINT = 1_700_000_000_000  # milliseconds since 1970


def split(name: str) -> Call:
    about = {"name": f"photos/{name}", "digest": "f" * 64, "source": "photos", "context": name}
    return Call("datasets", {"datasets": [{**about, "schema": {"image": "binary"}, "profile": {"samples": 3}}]})


def points(*values: tuple[str, float, int]) -> Call:
    return Call("batch", {"points": [[key, value, POINT + step, step] for key, value, step in values]})


CALLS = [
    Call("create", {"experiment": "gathered", "tags": {"a": "1"}, "name": "run", "time": POINT}),
    Call("batch", {"params": {f"key{number}": str(number) for number in range(150)}}),
    Call("texts", {"texts": {"config.yaml": "a: 1\n"}}),
    split("train"),
    split("val"),
    points(("loss", 0.5, 0), ("accuracy", 0.6, 0)),
    Call("batch", {"tags": {"a": "2", "b": "1"}}),
    Call("texts", {"texts": {"data/files.json": "{}", "config.yaml": "a: 2\n"}}),
    Call("batch", {"params": {"key1": "other"}}),
    points(("loss", 0.7, 0), ("loss", 0.4, 1)),
    Call("count", {"tag": "times"}),
    Call("batch", {"tags": {"b": "2", "ä": "ö"}}),
    points(*(("long", float(step), step) for step in range(900))),
    Call("rename", {"name": "renamed"}),
    Call("end", {"status": "FINISHED", "files": {}, "tags": {}, "time": POINT}),
]


def held(calls: Iterable[Call]) -> dict[str, Any]:
    """What a run holds after calls."""
    store = connect()
    target = Target("local0" + "0" * 26, None)
    for call in calls:
        perform(store, target, call)
    assert target.run_id is not None
    return content(store, target.run_id)


def test_a_run_holds_what_the_calls_write_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    assert held(call for call, _ in merged(CALLS)) == held(CALLS)
    # Both have said that a param was given another value.
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["key1: 1 -> other"] * 2


def test_merging_makes_fewer_calls_and_counts_each_once() -> None:
    fewer = list(merged(CALLS))
    assert len(fewer) < len(CALLS)
    assert sum(completed for _, completed in fewer) == len(CALLS)


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_a_courier_that_stops_after_a_merged_call_goes_on_behind_what_it_counted(stop: int) -> None:
    first = list(merged(CALLS))[:stop]
    done = sum(completed for _, completed in first)
    assert held([*(call for call, _ in first), *CALLS[done:]]) == held(CALLS)


def test_nothing_becomes_nothing() -> None:
    assert not list(merged([]))
