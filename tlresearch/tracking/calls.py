"""What is written to MLflow, as data: a call waits on disk, and can be made twice without harm."""

from __future__ import annotations

import logging
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

from tlresearch.base.errors import TrackingError
from tlresearch.tracking import values
from tlresearch.tracking.dataset import dataset_input
from tlresearch.tracking.manifest import Manifest
from tlresearch.tracking.model import store_model
from tlresearch.tracking.store import Store

_log = logging.getLogger(__name__)

LOCAL_ID = "tlresearch.local_id"
"""Tag of every run: the id it had before MLflow gave it one, so that a run is never made twice."""
STATE = "tlresearch.state"
REASON = "tlresearch.reason"
FAILURE = "tlresearch.failure"
CHANGED = "tlresearch.changed"
POINTS = 800
"""Metric points of a request: MLflow takes 1000 params, tags and points in all."""
_PER_REQUEST = 100  # params, or tags
_LOCAL = re.compile(r"^local0[0-9a-f]{26}$")


def is_local(run_id: str) -> bool:
    """Whether an id is one of ours, which MLflow's run holds as a tag."""
    return bool(_LOCAL.match(run_id))


def new_local_id() -> str:
    """An id as long as MLflow's, and different from all of them."""
    return f"local0{secrets.token_hex(13)}"


@dataclass(frozen=True)
class Call:
    """Something to be written of one run.

    Attributes:
        what: Key of `CALLS`.
        about: Its arguments, plain values only.
        file: The file or folder that it stores.
    """

    what: str
    about: Mapping[str, Any]
    file: Path | None = None


@dataclass
class Target:
    """The run that calls are made for, and what is known of it.

    Attributes:
        local_id: Its id before it has one of MLflow's.
        run_id: Its id; ``None`` until it has been created.
        experiment_id: Its experiment; empty until it has been created.
        resumed: Whether it may hold points and params already.
        params: Params it holds; ``None`` if that is not known.
        tags: Tags it had when it was continued, and counters.
        steps: Steps of each metric that are stored.
        models: Hashes of the files of each model that was logged.
    """

    local_id: str
    run_id: str | None
    experiment_id: str = ""
    resumed: bool = False
    params: dict[str, str] | None = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    steps: dict[str, set[int]] = field(default_factory=dict)
    models: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The run's id, or what stands in for it."""
        return self.run_id or self.local_id


def perform(store: Store, target: Target, call: Call, *, again: bool = False) -> None:
    """Makes a call.

    Args:
        store: The store.
        target: The run; what becomes known of it is added.
        call: The call.
        again: Whether it may have been made before, and only the answer was lost.

    Raises:
        StoreAwayError: If the store cannot be used now.
        TrackingError: If it refuses the call.
    """
    with store.errors():
        CALLS[call.what](store, target, call, again)


def resolve(store: Store, run_id: str) -> str | None:
    """The id that MLflow gave a run, by its local id; any other id as it is; ``None`` if there is no such run yet."""
    if not is_local(run_id):
        return run_id
    experiments = [found.experiment_id for found in store.client.search_experiments()]
    found = store.client.search_runs(experiments, f"tags.`{LOCAL_ID}` = '{run_id}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _resolved(store: Store, items: Mapping[str, str]) -> dict[str, str]:
    """Values in which ids of runs that were opened while the store was away are those that MLflow gave them."""
    return {
        key: (resolve(store, value) or value) if key != LOCAL_ID and is_local(value) else value
        for key, value in items.items()
    }


def _create(store: Store, target: Target, call: Call, again: bool) -> None:
    found = resolve(store, target.local_id) if again or target.resumed else None
    if found is not None:
        run = store.client.get_run(found)
    else:
        tags = _resolved(store, call.about["tags"])
        if is_local(tags.get("mlflow.parentRunId", "")):
            raise TrackingError(f"its parent {tags['mlflow.parentRunId']} has not been delivered")
        run = store.create_run(
            call.about["experiment"],
            start_time=call.about["time"],
            tags={**tags, LOCAL_ID: target.local_id},
            run_name=call.about["name"],
        )
    target.run_id, target.experiment_id = run.info.run_id, run.info.experiment_id


def _reopen(store: Store, target: Target, call: Call, again: bool) -> None:
    run_id = _known(target)
    found = store.client.get_run(run_id)
    if found.info.lifecycle_stage == "deleted":
        raise TrackingError(f"run {run_id} was deleted in MLflow; restore it there, or start a new run")
    store.client.update_run(run_id, status="RUNNING")
    found = store.client.get_run(run_id)  # as whoever wrote it before has left it
    target.experiment_id = found.info.experiment_id
    target.params, target.tags = dict(found.data.params), dict(found.data.tags)
    for tag in (STATE, REASON, FAILURE):
        if tag in found.data.tags:
            store.client.delete_tag(run_id, tag)
    _batch(store, target, call, again)


def _batch(store: Store, target: Target, call: Call, again: bool) -> None:
    """Params, tags and metric points, any of them, in as few requests as MLflow allows."""
    params, changed = _fresh_params(store, target, call.about.get("params", {}))
    points = call.about.get("points", ())
    # Reversed twice: of two values for the same step the first counts, as it does across batches.
    fresh = {(p[0], p[3]): p for p in reversed(points) if p[3] not in stored_steps(store, target, p[0])}
    _write(store, target, params, {**call.about.get("tags", {}), **changed}, list(reversed(fresh.values())))


def _fresh_params(
    store: Store, target: Target, given: Mapping[str, str]
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Params that the run does not hold, and a tag that tells of those it holds with another value."""
    if not given:
        return {}, {}
    if target.params is None:
        target.params = dict(store.client.get_run(_known(target)).data.params)
    stored = target.params
    fresh = {key: value for key, value in given.items() if key not in stored}
    changed = {key: value for key, value in given.items() if stored.get(key, value) != value}
    if not changed:
        return fresh, {}
    listing = ", ".join(f"{key}: {stored[key]} -> {value}" for key, value in sorted(changed.items()))
    _log.warning("run %s was started with other values: %s", _known(target), listing)
    return fresh, values.tags({CHANGED: listing})


def _write(
    store: Store, target: Target, params: Mapping[str, str], tags: Mapping[str, str], points: Sequence[Sequence[Any]]
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    some_params = _parts([Param(key, value) for key, value in params.items()], _PER_REQUEST)
    some_tags = _parts([RunTag(key, value) for key, value in _resolved(store, tags).items()], _PER_REQUEST)
    some_metrics = _parts([Metric(key, value, time, step) for key, value, time, step in points], POINTS)
    for part in zip_longest(some_metrics, some_params, some_tags, fillvalue=()):
        store.client.log_batch(_known(target), *part, synchronous=True)
        for metric in part[0]:
            target.steps[metric.key].add(metric.step)
    if target.params is not None:
        target.params.update(params)


def _count(store: Store, target: Target, call: Call, again: bool) -> None:
    # From the count at the start, not from the one stored: a count that is made twice is the same number.
    counted = str(int(target.tags.get(call.about["tag"], "0")) + 1)
    store.client.set_tag(_known(target), call.about["tag"], counted)
    target.tags[call.about["tag"]] = counted


def stored_steps(store: Store, target: Target, key: str) -> set[int]:
    """Steps of a metric that the store holds; asks it once, and only for a run that was continued."""
    if key not in target.steps:
        history = store.client.get_metric_history(_known(target), key) if target.resumed else []
        target.steps[key] = {point.step for point in history}
    return target.steps[key]


def _file(store: Store, target: Target, call: Call, again: bool) -> None:
    assert call.file is not None
    place = call.about["place"]
    if call.file.is_dir():
        store.client.log_artifacts(_known(target), str(call.file), place)
    else:
        store.client.log_artifact(_known(target), str(call.file), place or None)


def _texts(store: Store, target: Target, call: Call, again: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for path, text in call.about["texts"].items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        store.client.log_artifacts(_known(target), folder)


def _datasets(store: Store, target: Target, call: Call, again: bool) -> None:
    from mlflow.exceptions import MlflowException

    given = [dataset_input(**about) for about in call.about["datasets"]]
    try:
        store.client.log_inputs(_known(target), given)
    except MlflowException as error:
        # Two processes that make the entry of one data set at once: MLflow looks for it and then inserts it.
        if not re.search("unique|duplicate", str(error), re.IGNORECASE):
            raise
        store.client.log_inputs(_known(target), given)


def _rename(store: Store, target: Target, call: Call, again: bool) -> None:
    store.client.update_run(_known(target), name=call.about["name"])


def _model(store: Store, target: Target, call: Call, again: bool) -> None:
    assert call.file is not None
    model_id, hashes = store_model(store, _known(target), target.experiment_id, call.file, again=again, **call.about)
    target.models[model_id] = hashes


def _end(store: Store, target: Target, call: Call, again: bool) -> None:
    run_id = _known(target)
    if call.about["tags"]:
        _write(store, target, {}, call.about["tags"], ())
    manifest = Manifest(dict(call.about["files"]), dict(target.models))
    try:
        if target.resumed:
            manifest.missing(store, run_id)
        manifest.write(store, run_id)
    finally:
        store.client.set_terminated(run_id, call.about["status"], end_time=call.about["time"])


def _known(target: Target) -> str:
    if target.run_id is None:
        raise TrackingError(f"run {target.local_id} has not been created")
    return target.run_id


def _parts(items: Sequence[Any], size: int) -> Iterable[Any]:
    return (items[start : start + size] for start in range(0, len(items), size))


CALLS: Mapping[str, Callable[[Store, Target, Call, bool], None]] = {
    "create": _create,
    "reopen": _reopen,
    "batch": _batch,
    "count": _count,
    "file": _file,
    "texts": _texts,
    "datasets": _datasets,
    "rename": _rename,
    "model": _model,
    "end": _end,
}
"""All that is ever written of a run. Each can be made twice: the second time nothing changes."""


# In whatever order these are made, the run holds the same in the end. Texts go first: to find the place of the first
# artifact MLflow reads the whole run, which takes least before it has params and points.
_TOGETHER = ("texts", "datasets", "batch")


def merged(calls: Iterable[Call]) -> Iterator[tuple[Call, int]]:
    """Yields fewer calls that write the same, in order where that matters.

    Args:
        calls: Calls of one run, in order.

    Yields:
        A call, and how many of the given ones have been made as soon as this one has: 0 as long as more belong to it.
    """
    for together, some in groupby(calls, lambda call: call.what in _TOGETHER):
        if not together:
            yield from ((call, 1) for call in some)
            continue
        section = list(some)
        fewer = _one_of_each(section)
        yield from ((call, 0) for call in fewer[:-1])
        yield fewer[-1], len(section)


def _one_of_each(calls: Iterable[Call]) -> list[Call]:
    """One call of each kind; a param that is given another value later stays in a call of its own, as that is told."""
    found: dict[str, dict[str, Any]] = {}
    apart: list[Call] = []
    for call in calls:
        about = found.setdefault(call.what, {})
        params = about.get("params", {})
        if any(params.get(key, value) != value for key, value in call.about.get("params", {}).items()):
            apart.append(call)
            continue
        for key, value in call.about.items():
            about[key] = {**about.get(key, {}), **value} if isinstance(value, dict) else [*about.get(key, ()), *value]
    return [*(Call(what, found[what]) for what in _TOGETHER if what in found), *apart]
