"""A run whose process was killed does not seem to run for ever: whoever starts next ends it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tracking.outages import kill, start
from tlresearch.tracking.calls import Call, new_local_id
from tlresearch.tracking.journal import Writer, folder, journals
from tlresearch.tracking.store import Store, connect


@pytest.fixture
def store() -> Store:
    return connect()


def run(store: Store, run_id: str) -> Any:
    return store.client.get_run(run_id)


def test_a_killed_run_is_ended_by_the_next_one(store: Store) -> None:
    killed = start(name="killed")
    kill(killed)
    with start(name="next"):
        assert run(store, killed.run_id).info.status == "KILLED"
        assert run(store, killed.run_id).data.tags["tlresearch.failure"] == "its process was killed"
    assert not journals()
    assert not list(folder().glob("*.lock"))


def test_a_run_that_was_killed_before_it_recorded_anything_leaves_nothing(store: Store) -> None:
    label = store.label
    Writer(new_local_id(), store=label, name="killed").release()
    (folder() / new_local_id()).mkdir()  # killed before its first line was written
    start(name="next").close()
    assert not journals()
    assert len(store.client.search_runs([store.experiment_id("outage")])) == 1


def test_a_run_that_is_written_goes_on(store: Store) -> None:
    with start(name="alive") as alive:
        start(name="next").close()
        assert run(store, alive.run_id).info.status == "RUNNING"


def test_a_killed_run_of_another_store_is_left_to_whoever_uses_that(store: Store) -> None:
    elsewhere = Writer(new_local_id(), store="sqlite:///elsewhere.db", name="elsewhere")
    elsewhere.append(Call("batch", {"tags": {"a": "b"}}))
    elsewhere.release()
    start(name="next").close()
    (left,) = journals()
    assert (left.name, left.progress().offset) == ("elsewhere", 0)


def test_a_killed_run_that_goes_on_runs_again(store: Store) -> None:
    killed = start(name="killed")
    killed.log_metrics({"loss": 1.0}, 0)
    kill(killed)
    with start(name="killed", run_id=killed.reference) as again:
        assert again.run_id == killed.run_id
        assert run(store, killed.run_id).info.status == "RUNNING"
    assert run(store, killed.run_id).info.status == "FINISHED"
    assert "tlresearch.failure" not in run(store, killed.run_id).data.tags
