"""Recorded runs: finding them by id, beginning of an id or name, and the runs nested in them."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from tlresearch.base.errors import TrackingError, nearest
from tlresearch.tracking.calls import resolve
from tlresearch.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

STUDY_TAG = "tlresearch.study"
TRIAL = "tlresearch.trial"
DIRECTIONS = "tlresearch.directions"
MONITOR = "tlresearch.monitor"
"""Tag of a run: the metric it was watched by."""
"""Tag of a run: what its task says of its metrics, as JSON; see `tlresearch.base.direction`."""
CONFIG = "config.yaml"
DATA_FILES = "data/files.json"
ENVIRONMENT = "provenance/environment.json"
DIFF = "provenance/diff.patch"
PARTS = "provenance/parts.json"
COMPUTATION = "provenance/computation.json"
TIMES = "provenance/autotune.json"
PREDICTIONS = "predictions"
CLASS_NAMES = "metrics/class_names.json"
"""Artifacts of a run: how it is started again, what it came from, and its predictions sample by sample."""
_PAGE = 1000
_NOT_THERE = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code for a run that is not in the store
_log = logging.getLogger(__name__)
_RUN_ID = re.compile(r"^[0-9a-f]{32}$")
_PREFIX = re.compile(r"^[0-9a-f]{4,31}$")


def find_run(store: Store, text: str) -> Run:
    """Finds one run by its id, the beginning of its id (4 characters or more), its name, or ``experiment/name``.

    Of several runs that share a name the only one that has finished is meant; that is said.

    Raises:
        TrackingError: If there is none, or several; the text lists them.
    """
    from mlflow.exceptions import MlflowException

    with store.errors():
        text = resolve(store, text) or text
        if _RUN_ID.match(text):
            try:
                return store.client.get_run(text)
            except MlflowException as error:
                if error.error_code != _NOT_THERE:
                    raise
                raise _none(store, f"run {text}") from None
    found = _named(store, text)
    if not found and _PREFIX.match(text):
        found = search(store, f"attributes.run_id LIKE '{text}%'")
    if not found and "/" in text:
        experiment, _, name = text.rpartition("/")
        found = _named(store, name, experiment)
    if not found:
        names = [run.info.run_name or "" for run in search(store, "", limit=_PAGE)]
        raise _none(store, f"run '{text}'", nearest(text, names))
    if len(found) == 1:
        return found[0]
    listing = ", ".join(f"{run.info.run_id[:8]} ({run.info.run_name}, {run.info.status.lower()})" for run in found[:10])
    finished = [run for run in found if run.info.status == "FINISHED"]
    if len(finished) > 1 or not finished:
        raise TrackingError(
            f"'{text}' is {len(found)} runs: {listing}; give the beginning of one id, or experiment/name"
        )
    _log.warning("'%s' is %d runs: %s; the one that has finished is meant", text, len(found), listing)
    return finished[0]


def _none(store: Store, what: str, guess: str = "") -> TrackingError:
    return TrackingError(
        f"there is no {what} in the MLflow store {store.label}{guess}; if it was recorded in another, name that "
        "by MLFLOW_TRACKING_URI (of a command by --tracking-uri, as tracking.uri of its config)"
    )


def _named(store: Store, name: str, experiment: str | None = None) -> list[Run]:
    quoted = name.replace("'", "''")
    return search(store, f"attributes.run_name = '{quoted}'", experiment=experiment)


def children(store: Store, run_id: str) -> list[Run]:
    """The runs nested in one."""
    return search(store, f"tags.`mlflow.parentRunId` = '{run_id}'")


def study_runs(store: Store, study: str) -> list[Run]:
    """The parent runs of a study: those with its tag, else those with its name.

    Raises:
        TrackingError: If there is none.
    """
    quoted = study.replace("'", "''")
    tagged = search(store, f"tags.`{STUDY_TAG}` = '{quoted}'")
    parents = [run for run in tagged if "mlflow.parentRunId" not in run.data.tags]
    parents = parents or search(store, f"attributes.run_name = '{quoted}'")
    if not parents:
        raise _none(store, f"sweep '{study}'")
    return parents


def search(store: Store, query: str, limit: int | None = None, experiment: str | None = None) -> list[Run]:
    """All runs that match a query of MLflow, newest first, in every experiment or in the one of this name."""
    with store.errors():
        found = store.client.search_experiments()
        experiments = [each.experiment_id for each in found if experiment in (None, each.name)]
        if not experiments:
            return []
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = store.client.search_runs(experiments, query, max_results=_PAGE, page_token=token)
            runs += page
            token = page.token
            if not token or (limit is not None and len(runs) >= limit):
                return runs[:limit]


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
