"""Runs that a machine took with it when it was lost: nobody is left to end them."""

from __future__ import annotations

from collections.abc import Collection

from tlresearch.tracking.records import search
from tlresearch.tracking.store import Store

TRIAL = "tlresearch.trial"


def close_lost(store: Store, parent: str, trials: Collection[int]) -> int:
    """Ends runs of a study that were given up and do not say so; returns how many.

    A trial that another worker went on with from its checkpoint is the same run, and has ended with it. One that had
    to begin anew elsewhere left its first run behind: as if it still ran, or finished without the study knowing.

    Args:
        store: The MLflow store.
        parent: The study's run.
        trials: Numbers of the trials that were given back.
    """
    if not trials:
        return 0
    query = f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status != 'KILLED'"
    given_up = {str(number) for number in trials}
    found = [run for run in search(store, query) if run.data.tags.get(TRIAL, "") in given_up]
    lost = [run for run in found if run.info.status in ("RUNNING", "FINISHED")]
    for run in lost:
        with store.errors():
            store.client.set_terminated(run.info.run_id, "KILLED")
    return len(lost)
