"""Calls: what is written to MLflow, as plain data that can wait on disk and be written twice without harm."""

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
"""Tag of every run: the id it had before MLflow gave it one. By it `create` finds a run that it made before."""
STATE = "tlresearch.state"
REASON = "tlresearch.reason"
FAILURE = "tlresearch.failure"
CHANGED = "tlresearch.changed"
POINTS = 800
"""Metric points per request: MLflow takes 1000 params, tags and points together."""
_PER_REQUEST = 100  # params per request, and tags
_LOCAL = re.compile(r"^local0[0-9a-f]{26}$")


def is_local(run_id: str) -> bool:
    """Whether an id is one that we gave (`LOCAL_ID`), not MLflow."""
    return bool(_LOCAL.match(run_id))


def new_local_id() -> str:
    """Makes an id as long as MLflow's (32 characters) that cannot be one of them: those are hexadecimal."""
    return f"local0{secrets.token_hex(13)}"


@dataclass(frozen=True)
class Call:
    """One write to MLflow for one run.

    Attributes:
        kind: Key of `CALLS`.
        arguments: Its arguments, plain values only.
        file: The file or folder that it stores.
    """

    kind: str
    arguments: Mapping[str, Any]
    file: Path | None = None


@dataclass
class Target:
    """The run that calls are made for, and what is known of its content.

    Attributes:
        local_id: Its id until MLflow has given it one.
        run_id: MLflow's id; ``None`` until the run has been created.
        experiment_id: Its experiment; empty until the run has been created.
        resumed: Whether the run may hold points and params from an earlier process.
        params: Params it holds; ``None`` if they have not been read.
        tags: Tags it had when it was continued, and counters.
        steps: Stored steps by metric.
        models: Hashes of the files of each logged model.
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
        """MLflow's id of the run, or the local id until there is one."""
        return self.run_id or self.local_id


def perform(store: Store, target: Target, call: Call, *, again: bool = False) -> None:
    """Makes a call.

    Args:
        store: The store.
        target: The run; updated with what the store answers.
        call: The call.
        again: Whether it may have been made before, with the answer lost.

    Raises:
        StoreAwayError: If the store cannot be used now.
        TrackingError: If it refuses the call.
    """
    with store.errors():
        CALLS[call.kind](store, target, call, again)


def resolve(store: Store, run_id: str) -> str | None:
    """Returns MLflow's id of a run for its local id, ``None`` if MLflow does not have it; other ids as they are."""
    if not is_local(run_id):
        return run_id
    experiments = [experiment.experiment_id for experiment in store.client.search_experiments()]
    runs = store.client.search_runs(experiments, f"tags.`{LOCAL_ID}` = '{run_id}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _resolved(store: Store, tags: Mapping[str, str]) -> dict[str, str]:
    """Replaces local ids in the values of tags by MLflow's ids, where MLflow has the run."""
    return {
        key: (resolve(store, value) or value) if key != LOCAL_ID and is_local(value) else value
        for key, value in tags.items()
    }


def _create(store: Store, target: Target, call: Call, again: bool) -> None:
    existing = resolve(store, target.local_id) if again or target.resumed else None
    if existing is not None:
        run = store.client.get_run(existing)
    else:
        tags = _resolved(store, call.arguments["tags"])
        if is_local(tags.get("mlflow.parentRunId", "")):
            raise TrackingError(f"its parent {tags['mlflow.parentRunId']} has not been delivered")
        run = store.create_run(
            call.arguments["experiment"],
            start_time=call.arguments["time"],
            tags={**tags, LOCAL_ID: target.local_id},
            run_name=call.arguments["name"],
        )
    target.run_id, target.experiment_id = run.info.run_id, run.info.experiment_id


def _reopen(store: Store, target: Target, call: Call, again: bool) -> None:
    run_id = _created(target)
    run = store.client.get_run(run_id)
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(f"run {run_id} was deleted in MLflow; restore it there, or start a new run")
    store.client.update_run(run_id, status="RUNNING")
    # Read again: an earlier process may have written between the first read and the change of status.
    run = store.client.get_run(run_id)
    target.experiment_id = run.info.experiment_id
    target.params, target.tags = dict(run.data.params), dict(run.data.tags)
    for tag in (STATE, REASON, FAILURE):  # they say how the earlier process ended
        if tag in run.data.tags:
            store.client.delete_tag(run_id, tag)
    _batch(store, target, call, again)


def _batch(store: Store, target: Target, call: Call, again: bool) -> None:
    """Writes params, tags and metric points, any of them, in as few requests as MLflow allows."""
    params, changed = _fresh_params(store, target, call.arguments.get("params", {}))
    points = call.arguments.get("points", ())
    # If a batch holds two values for one step, keep the first, as across batches. A dict keeps the last value of a
    # key, so the points go in reversed, and come out in order again.
    fresh = {(p[0], p[3]): p for p in reversed(points) if p[3] not in stored_steps(store, target, p[0])}
    _write(store, target, params, {**call.arguments.get("tags", {}), **changed}, list(reversed(fresh.values())))


def _fresh_params(
    store: Store, target: Target, params: Mapping[str, str]
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Returns the params that the run does not hold, and a tag that lists those it holds with another value.

    MLflow answers a changed param with an error for the whole request, so it is sorted out before.
    """
    if not params:
        return {}, {}
    if target.params is None:
        target.params = dict(store.client.get_run(_created(target)).data.params)
    stored = target.params
    fresh = {key: value for key, value in params.items() if key not in stored}
    changed = {key: value for key, value in params.items() if stored.get(key, value) != value}
    if not changed:
        return fresh, {}
    listing = ", ".join(f"{key}: {stored[key]} -> {value}" for key, value in sorted(changed.items()))
    _log.warning("run %s was started with other values: %s", _created(target), listing)
    return fresh, values.tags({CHANGED: listing})


def _write(
    store: Store, target: Target, params: Mapping[str, str], tags: Mapping[str, str], points: Sequence[Sequence[Any]]
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    param_chunks = _chunks([Param(key, value) for key, value in params.items()], _PER_REQUEST)
    tag_chunks = _chunks([RunTag(key, value) for key, value in _resolved(store, tags).items()], _PER_REQUEST)
    metric_chunks = _chunks([Metric(key, value, time, step) for key, value, time, step in points], POINTS)
    for request in zip_longest(metric_chunks, param_chunks, tag_chunks, fillvalue=()):
        store.client.log_batch(_created(target), *request, synchronous=True)
        for metric in request[0]:
            target.steps[metric.key].add(metric.step)
    if target.params is not None:
        target.params.update(params)


def _count(store: Store, target: Target, call: Call, again: bool) -> None:
    # Count from what the target remembers, not from the store: a call that is made twice writes the same number.
    tag = call.arguments["tag"]
    count = str(int(target.tags.get(tag, "0")) + 1)
    store.client.set_tag(_created(target), tag, count)
    target.tags[tag] = count


def stored_steps(store: Store, target: Target, key: str) -> set[int]:
    """Returns the steps of a metric that the store holds; asks the store once, and only if the run was continued."""
    if key not in target.steps:
        history = store.client.get_metric_history(_created(target), key) if target.resumed else []
        target.steps[key] = {point.step for point in history}
    return target.steps[key]


def _file(store: Store, target: Target, call: Call, again: bool) -> None:
    assert call.file is not None
    place = call.arguments["place"]
    if call.file.is_dir():
        store.client.log_artifacts(_created(target), str(call.file), place)
    else:
        store.client.log_artifact(_created(target), str(call.file), place or None)


def _texts(store: Store, target: Target, call: Call, again: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for path, text in call.arguments["texts"].items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        store.client.log_artifacts(_created(target), folder)


def _datasets(store: Store, target: Target, call: Call, again: bool) -> None:
    from mlflow.exceptions import MlflowException

    inputs = [dataset_input(**fields) for fields in call.arguments["datasets"]]
    try:
        store.client.log_inputs(_created(target), inputs)
    except MlflowException as error:
        # MLflow looks a data set up and then inserts it, so two processes with the same data set can both insert. The
        # second gets this error; when it tries again, the entry is there.
        if not re.search("unique|duplicate", str(error), re.IGNORECASE):
            raise
        store.client.log_inputs(_created(target), inputs)


def _rename(store: Store, target: Target, call: Call, again: bool) -> None:
    store.client.update_run(_created(target), name=call.arguments["name"])


def _model(store: Store, target: Target, call: Call, again: bool) -> None:
    assert call.file is not None
    model_id, hashes = store_model(
        store, _created(target), target.experiment_id, call.file, again=again, **call.arguments
    )
    target.models[model_id] = hashes


def _end(store: Store, target: Target, call: Call, again: bool) -> None:
    run_id = _created(target)
    if call.arguments["tags"]:
        _write(store, target, {}, call.arguments["tags"], ())
    manifest = Manifest(dict(call.arguments["files"]), dict(target.models))
    try:
        if target.resumed:
            manifest.add_stored(store, run_id)
        manifest.write(store, run_id)
    finally:  # a manifest that cannot be written must not leave the run RUNNING
        store.client.set_terminated(run_id, call.arguments["status"], end_time=call.arguments["time"])


def _created(target: Target) -> str:
    """Returns MLflow's id of the run, which must have been created."""
    if target.run_id is None:
        raise TrackingError(f"run {target.local_id} has not been created")
    return target.run_id


def _chunks(items: Sequence[Any], size: int) -> Iterable[Any]:
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
"""Everything that is ever written of a run. A call that is made twice changes nothing the second time."""


# The order in which these are made does not matter for what the run holds in the end. Texts go first: for the first
# artifact MLflow reads the whole run to learn where artifacts go, which is fastest while it has no params and points.
_MERGEABLE = ("texts", "datasets", "batch")


def merged(calls: Iterable[Call]) -> Iterator[tuple[Call, int]]:
    """Merges calls into fewer that write the same; a request costs as much as the twenty metric points it could carry.

    Args:
        calls: Calls of one run, in order.

    Yields:
        A call, and how many of `calls` are completed with it: 0 until the last call of a merged section.
    """
    for mergeable, group in groupby(calls, lambda call: call.kind in _MERGEABLE):
        if not mergeable:
            yield from ((call, 1) for call in group)
            continue
        section = list(group)
        fewer = _merge_section(section)
        yield from ((call, 0) for call in fewer[:-1])
        yield fewer[-1], len(section)


def _merge_section(calls: Iterable[Call]) -> list[Call]:
    """Merges calls into one of each kind.

    A call that gives a param a second value stays separate: merging would hide the change, which `_batch` reports.
    """
    merged_arguments: dict[str, dict[str, Any]] = {}
    separate: list[Call] = []
    for call in calls:
        arguments = merged_arguments.setdefault(call.kind, {})
        params = arguments.get("params", {})
        if any(params.get(key, value) != value for key, value in call.arguments.get("params", {}).items()):
            separate.append(call)
            continue
        for key, value in call.arguments.items():
            if isinstance(value, dict):
                arguments[key] = {**arguments.get(key, {}), **value}
            else:
                arguments[key] = [*arguments.get(key, ()), *value]
    return [*(Call(kind, merged_arguments[kind]) for kind in _MERGEABLE if kind in merged_arguments), *separate]
