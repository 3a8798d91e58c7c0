"""What earlier processes could not deliver: found on disk, delivered in order, told."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass

from tlresearch.base.errors import TrackingError
from tlresearch.tracking.journal import Journal, folder, journals
from tlresearch.tracking.owner import Ownership
from tlresearch.tracking.store import Store, StoreAwayError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Delivered:
    """What became of the journal of one run.

    Attributes:
        name: Name of the run; `run_id`: its id in MLflow, or the local one.
        points: Metric values that were delivered; `files`: files.
        problem: Why it was not delivered, or not all of it; empty if it was.
    """

    name: str
    run_id: str
    points: int = 0
    files: int = 0
    problem: str = ""


def deliver(store: Store, label: str) -> list[Delivered]:
    """Delivers what waits for a store, run after run, those that began first in front.

    A run that another process is writing, or is delivering at the same time, is left to it.

    Args:
        store: The store.
        label: The address under which it waits.

    Raises:
        StoreAwayError: If the store cannot be used now; what it took before that is delivered.
    """
    return [done for journal in journals(label) if (done := _deliver(store, journal.path.name)) is not None]


def _deliver(store: Store, run_id: str) -> Delivered | None:
    owner = Ownership.free(run_id)
    if owner is None:
        return Delivered("", run_id, problem="it is being written or delivered by another process")
    try:
        journal = Journal.left(run_id)  # again: another process may have delivered it before we owned it
        if journal is None:
            return None
        before, problem = journal.counts(), ""
        try:
            journal.deliver(store)
            journal.remove()
        except StoreAwayError:
            raise
        except TrackingError as error:
            problem = f"{error}; it is kept in {journal.path}"
        if not journal.ended:
            owner.drop()  # whoever starts next ends it, or goes on with it
        done = before - journal.counts()
        return Delivered(journal.name, journal.target.id, done["points"], done["files"], problem)
    finally:
        owner.release()


def deliver_left(store: Store) -> None:
    """Delivers what earlier processes have left for a store, before a run of its own begins; says so."""
    if not folder().is_dir():
        return
    done = [one for one in deliver(store, store.label) if one.name]
    if whole := [one for one in done if not one.problem]:
        _log.warning("delivered to the MLflow store %s what had waited: %s", store.label, summary(whole))
    for one in done:
        if one.problem:
            _log.warning("run %s: %s", one.name, one.problem)


def summary(done: list[Delivered]) -> str:
    """Delivered runs in a line."""
    points, files = sum(one.points for one in done), sum(one.files for one in done)
    return f"{_number(points, 'metric value')} and {_number(files, 'file')} of {_names([one.name for one in done])}"


def told(store: Store) -> str:
    """One line about what waits for a store: how much, of which runs, and who delivers it."""
    left = journals(store.label)
    counts = sum((journal.counts() for journal in left), Counter[str]())
    return (
        f"not delivered to the MLflow store {store.label}: {_number(counts['points'], 'metric value')}, "
        f"{_number(counts['files'], 'file')} and the end of {_names([journal.name for journal in left])}; "
        f"kept in {folder()}, and delivered by: tlresearch sync"
    )


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{_number(len(names), 'run')} ({shown})"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
