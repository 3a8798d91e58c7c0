"""Runs that a process took with it when it was killed: whoever starts next on this machine ends them."""

from __future__ import annotations

import logging

from tlresearch.base.paths import home
from tlresearch.tracking.calls import FAILURE, resolve
from tlresearch.tracking.journal import Journal
from tlresearch.tracking.owner import Ownership
from tlresearch.tracking.store import Store, one_line

log = logging.getLogger(__name__)


def end_left(store: Store) -> int:
    """Ends runs that still seem to run, but that no process of this machine owns any more; returns how many.

    A killed process leaves its locks behind, which nobody holds. Who continues such a run opens it again.

    Args:
        store: The store; a run of another one is left to whoever uses that.
    """
    return sum(_end(store, lock.stem) for lock in (home() / "writing").glob("*.lock"))


def _end(store: Store, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    owner = Ownership.free(run_id)
    if owner is None:
        return False
    if Journal.left(run_id) is not None:
        owner.drop()  # its end comes after what waits
        return False
    try:
        found = resolve(store, run_id)
        running = found is not None and store.client.get_run(found).info.status == "RUNNING"
        if found is not None and running:
            store.client.set_tag(found, FAILURE, "its process was killed")
            store.client.set_terminated(found, "KILLED")
    except MlflowException as error:
        log.debug("run %s: %s", run_id, one_line(error))
        owner.drop()
        return False
    owner.release()
    return running
