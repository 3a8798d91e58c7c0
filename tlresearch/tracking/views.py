"""Prepared views of MLflow's table of runs, which by default has no column for any metric or param."""

from __future__ import annotations

import base64
import json
import logging
import zlib
from collections.abc import Sequence
from urllib.parse import quote

from tlresearch.tracking.addresses import run_url, runs_url
from tlresearch.tracking.records import STUDY_TAG, Runs
from tlresearch.tracking.store import Store, StoreAwayError

_log = logging.getLogger(__name__)

_PREFIX = "mlflow.sharedViewState."
_PLAIN = "tlresearch"


def save_view(
    store: Store,
    experiment_id: str,
    *,
    metrics: Sequence[str],
    params: Sequence[str],
    best_first: str | None = None,
    falling: bool = False,
    query: str = "",
    name: str = _PLAIN,
) -> str:
    """Saves a view with the experiment and returns its address.

    Args:
        store: The store.
        experiment_id: The experiment; its view of the same name is replaced.
        metrics: Metrics that get a column.
        params: Params that get a column.
        best_first: Metric the runs are sorted by.
        falling: Whether less of it is better.
        query: Search of MLflow that limits the runs, such as ``tags.`tlresearch.study` = 'x'``.
        name: Name of the view in its address.
    """
    columns = ["attributes.`Created`", "attributes.`Duration`"]
    columns += [f"metrics.`{metric}`" for metric in metrics] + [f"params.`{param}`" for param in params]
    state: dict[str, object] = {"selectedColumns": columns, "searchFilter": query}
    if best_first:
        state |= {"orderByKey": f"metrics.`{best_first}`", "orderByAsc": falling}
    # The undocumented format in which the UI's "Share" button stores a view: a tag of the experiment.
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    try:
        with store.errors():
            store.client.set_experiment_tag(experiment_id, f"{_PREFIX}{name}", f"deflate;{packed}")
    except StoreAwayError as error:
        _log.warning("the view of the table of runs is not saved: %s", error)
    return _view(store.ui, experiment_id, name)


def saved_views(store: Store, base: str) -> list[tuple[str, str]]:
    """Lists name and address of every table of runs, newest experiment first: its prepared views, else the plain table.

    Args:
        store: The store.
        base: Address of the UI, such as ``http://127.0.0.1:5000``.
    """
    with store.errors():
        experiments = store.client.search_experiments(order_by=["last_update_time DESC"])
    views = []
    for experiment in experiments:
        keys = [tag.removeprefix(_PREFIX) for tag in experiment.tags if tag.startswith(_PREFIX)]
        for key in sorted(keys, key=lambda key: key != _PLAIN):
            name = experiment.name if key == _PLAIN else f"sweep {key}"
            views.append((name, _view(base, experiment.experiment_id, key)))
        if not keys and experiment.name != "Default":
            views.append((experiment.name, runs_url(base, experiment.experiment_id)))
    return views


def latest(store: Store, base: str) -> tuple[str, str] | None:
    """Returns name and address of the newest record: a study's table of trials, or a run; ``None`` if there is none.

    Args:
        store: The store.
        base: Address of the UI.
    """
    runs = Runs(store)
    newest = runs.search("", limit=1)
    if not newest:
        return None
    run = runs.get(newest[0].parent) if newest[0].parent else newest[0]
    study = run.tags.get(STUDY_TAG)
    if study is None:
        return f"run {run.name}", run_url(base, run.stored.info.experiment_id, run.run_id)
    return f"study {study}", _view(base, run.stored.info.experiment_id, study)


def _view(base: str, experiment_id: str, name: str) -> str:
    return f"{runs_url(base, experiment_id)}&viewStateShareKey={quote(name, safe='')}"
