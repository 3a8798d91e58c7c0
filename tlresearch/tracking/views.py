"""A prepared view of the table of runs: MLflow shows no metric or param of its own accord."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence

from tlresearch.tracking.store import Store, runs_url

_PREFIX = "mlflow.sharedViewState."


def save_view(
    store: Store,
    experiment_id: str,
    *,
    metrics: Sequence[str],
    params: Sequence[str],
    best_first: str | None = None,
    falling: bool = False,
    query: str = "",
    name: str = "tlresearch",
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
    # The format of the UI's own "Share" button.
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    with store.errors():
        store.client.set_experiment_tag(experiment_id, f"{_PREFIX}{name}", f"deflate;{packed}")
    return f"{runs_url(store.ui, experiment_id)}&viewStateShareKey={name}"
