"""The short form of `make chaos`, each fault once; and the accounts find what they are there to find."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.chaos.disk import mountable
from tests.chaos.faults import FAULTS
from tests.chaos.outcome import Outcome, Row, table
from tests.chaos.project import LINEAGE_FILES, LINEAGE_TAGS, METRIC, Recorded, audit, finished, still_there
from tests.chaos.surroundings import Surroundings
from tests.nursery import Nursery

QUICK = ("kill", "nan", "checkpoint-damaged", "cache-damaged")  # the others belong to `make test-slow`
ON_DISKS = tuple(name for name in FAULTS if name.endswith(("-full", "-read-only")))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as processes:
        yield processes


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAULTS])
@pytest.mark.skipif(sys.platform == "win32", reason="signals and forks of POSIX")
def test_a_fault_does_no_harm(name: str, nursery: Nursery, tmp_path: Path, empty_database: Path) -> None:
    if name in ON_DISKS and not mountable(tmp_path):
        pytest.skip("no file system can be mounted here")
    found = FAULTS[name].cause(Surroundings(tmp_path, empty_database, nursery, Random(name)), 1)
    assert found.harmless, found


def a_trial(number: int = 0, state: str = "COMPLETE", value: float = 0.5, **attributes: Any) -> Any:
    return SimpleNamespace(
        number=number,
        state=TrialState[state],
        value=value,
        params={"optimizer.lr": 0.1 + number},
        user_attrs=attributes,
    )


def a_run(number: int = 0, status: str = "FINISHED", value: float = 0.5, epochs: int = 3) -> Recorded:
    curve = [(epoch, value) for epoch in range(epochs)]
    params = {"optimizer.lr": str(0.1 + number)}
    tags = {"tlresearch.trial": str(number), **dict.fromkeys(LINEAGE_TAGS, "known")}
    return Recorded(f"{number:032x}", f"{number}", status, "p", tags, params, {METRIC: curve}, frozenset(LINEAGE_FILES))


@pytest.mark.parametrize(
    ("trials", "runs", "lost", "duplicated", "running"),
    [
        ([a_trial()], [a_run()], 0, 0, 0),
        ([a_trial(state="FAIL", failure="nan")], [a_run(status="FAILED")], 0, 0, 0),
        ([a_trial(state="FAIL"), a_trial(1)], [a_run(status="KILLED"), a_run(1)], 0, 0, 0),
        ([], [], 1, 0, 0),  # the total is not met
        ([a_trial(), a_trial(1)], [a_run(), a_run(1)], 0, 1, 0),  # one too many
        ([a_trial()], [], 1, 0, 0),  # MLflow does not know it
        ([a_trial()], [a_run(), a_run()], 1, 0, 0),
        ([a_trial()], [a_run(value=0.4)], 1, 0, 0),
        ([a_trial()], [a_run(epochs=2)], 1, 0, 0),
        ([a_trial()], [a_run(status="KILLED")], 1, 0, 0),
        ([a_trial(state="FAIL"), a_trial(1)], [a_run(), a_run(1)], 0, 1, 0),  # finished in MLflow alone
        ([a_trial()], [a_run(), a_run(7, "RUNNING")], 0, 0, 1),
        ([a_trial(), a_trial(1, "RUNNING")], [a_run()], 0, 0, 1),
    ],
)
def test_the_accounts_find_what_is_wrong(
    trials: list[Any], runs: list[Recorded], lost: int, duplicated: int, running: int
) -> None:
    found = audit(trials, runs, 1)
    assert (found.lost, found.duplicated, found.running) == (lost, duplicated, running), found.notes
    assert bool(found.notes) == bool(lost or duplicated or running)


def test_a_point_that_is_stored_twice_is_found() -> None:
    run = a_run()
    run.points["train/loss"] = [(0, 1.0), (1, 0.5), (1, 0.5)]
    assert audit([a_trial()], [run], 1).duplicated == 1


@pytest.mark.parametrize("lacks", [*LINEAGE_TAGS, *LINEAGE_FILES])
def test_a_run_that_does_not_say_where_it_comes_from_is_found(lacks: str) -> None:
    run = a_run()
    run.tags.pop(lacks, None)
    run = replace(run, files=run.files - {lacks})
    assert audit([a_trial()], [run], 1).lost == 1


def test_a_finished_trial_that_changes_is_lost() -> None:
    before = finished([a_trial(), a_trial(1)])
    assert still_there(before, [a_trial(), a_trial(1)]).lost == 0
    assert still_there(before, [a_trial(), a_trial(1, value=0.6)]).lost == 1
    assert still_there(before, [a_trial()]).lost == 1


def test_a_fault_that_was_not_caused_proves_nothing() -> None:
    assert not Outcome().harmless
    assert Outcome(injected=1).harmless
    assert not (Outcome(injected=1) + Outcome(running=1)).harmless
    assert "| SIGKILL | 1 | 0 | 0 | 0 | 2 |" in table([Row("SIGKILL", Outcome(injected=1), 1.6)])
