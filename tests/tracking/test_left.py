"""A run whose process was killed does not seem to run for ever: whoever starts next ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.calls import LOCAL_ID, new_local_id
from tlresearch.tracking.left import end_left
from tlresearch.tracking.owner import Ownership
from tlresearch.tracking.run import TrackedRun, open_run
from tlresearch.tracking.store import Store, connect


@pytest.fixture
def store() -> Store:
    return connect()


def start(name: str) -> TrackedRun:
    return open_run(TrackingConfig(system_metrics=False), experiment="e", name=name, params={}, tags={})


def a_run(store: Store, **tags: str) -> str:
    made = store.client.create_run(store.experiment_id("e"), tags=tags, run_name="made")
    return str(made.info.run_id)


def run(store: Store, run_id: str) -> Any:
    return store.client.get_run(run_id)


def lock(home: Path, name: str) -> Path:
    path = home / "writing" / f"{name}.lock"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def test_a_run_that_nobody_owns_is_ended_by_the_next_one(store: Store, home: Path) -> None:
    killed = a_run(store)
    path = lock(home, killed)
    with start("next"):
        assert run(store, killed).info.status == "KILLED"
        assert run(store, killed).data.tags["tlresearch.failure"] == "its process was killed"
    assert not path.exists()
    assert not list((home / "writing").glob("*.lock"))  # nor has the next one left any


def test_a_kill_between_making_a_run_and_owning_it_is_found(store: Store, home: Path) -> None:
    local = new_local_id()
    killed = a_run(store, **{LOCAL_ID: local})
    lock(home, local)
    lock(home, new_local_id())  # killed even before it was made
    assert end_left(store) == 1
    assert run(store, killed).info.status == "KILLED"
    assert not list((home / "writing").glob("*.lock"))


def test_a_run_that_is_owned_goes_on(store: Store, home: Path) -> None:
    with start("alive") as alive:
        assert end_left(store) == 0
        assert run(store, alive.run_id).info.status == "RUNNING"


def test_what_ended_well_stays_so_and_other_stores_are_left_alone(store: Store, home: Path) -> None:
    ended = a_run(store)
    store.client.set_terminated(ended, "FINISHED")
    lock(home, ended)
    elsewhere = lock(home, "0" * 32)
    assert end_left(store) == 0
    assert run(store, ended).info.status == "FINISHED"
    assert elsewhere.exists()
    assert Ownership.free("0" * 32) is not None
