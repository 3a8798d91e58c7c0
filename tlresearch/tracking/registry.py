"""Trained models: finding one by run or by registered name, and registering one with its lineage."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlresearch.base.errors import TrackingError, first_line, nearest
from tlresearch.tracking.model import model_ids
from tlresearch.tracking.records import find_run
from tlresearch.tracking.run import PRUNED_MARK
from tlresearch.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

LINEAGE = (
    "tlresearch.data",
    "tlresearch.weights",
    "tlresearch.weights_sha256",
    "tlresearch.parent_run",
    "mlflow.source.git.commit",
)
"""Tags of a run that its registered model takes over."""
FINGERPRINT = "tlresearch.data_fingerprint"
MODEL = "tlresearch.model"
"""Tag of a version: id of the logged model. MLflow's own field is empty for a version read from a database."""
_REGISTERED = re.compile(r"^models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))$")


@dataclass(frozen=True)
class LoggedModel:
    """A logged model.

    Attributes:
        model_id: Its id.
        run_id: The run in which it was trained.
        name: Its name in messages, such as ``probe (run 3f2a9c1b)`` or ``digits version 2``.
    """

    model_id: str
    run_id: str
    name: str


@dataclass(frozen=True)
class Registered:
    """The version under which a model is registered.

    Attributes:
        name: Name in the registry.
        version: Version under that name.
        new: Whether this call made the version: the same model gets only one version under a name.
        tags: Lineage.
    """

    name: str
    version: str
    new: bool
    tags: dict[str, str]


def find_model(store: Store, text: str) -> LoggedModel:
    """Finds a model by its run (id, beginning of the id, or name), or as ``models:/name@alias`` or ``models:/name/2``.

    Raises:
        TrackingError: If there is none.
    """
    if text.startswith("models:"):
        return _registered(store, text)
    run = find_run(store, text)
    run_id, name = run.info.run_id, (run.info.run_name or "").removeprefix(PRUNED_MARK)
    models = model_ids(run)
    if not models:
        if run.info.status == "RUNNING":
            raise TrackingError(f"run {run_id[:8]} ({name}) has no model yet: it is still running")
        raise TrackingError(
            f"run {run_id[:8]} ({name}) has no model: trials of a sweep, runs with tracking.model=false and tasks "
            "of one's own log none; of a sweep or a group of seeds name one of its runs"
        )
    return LoggedModel(models[-1], run_id, f"{name} (run {run_id[:8]})")


def register(store: Store, run: str, name: str, alias: str | None = None) -> Registered:
    """Registers a run's model; the alias, if there is one, moves to it.

    Args:
        store: The store.
        run: Run id, beginning of it, or run name.
        name: Name in the registry; it is created if necessary.
        alias: Such as ``champion``.

    Raises:
        TrackingError: If there is no such model, or MLflow rejects the name or the alias.
    """
    model = find_model(store, run)
    recorded = store.client.get_run(model.run_id)
    tags = {**lineage(recorded), MODEL: model.model_id}
    with store.errors():
        _ensure_name(store, name)
        versions = store.client.search_model_versions(f"name = '{name}'")
        # MLflow would make another version of the same model at every call.
        existing = next((version for version in versions if version.tags.get(MODEL) == model.model_id), None)
        version = existing or _new_version(store, name, model, tags)
        if alias:
            store.client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version), existing is None, tags)


def lineage(run: Run) -> dict[str, str]:
    """Returns the origin of a run's model as tags: run, data (with the whole fingerprint), weights and code."""
    tags = {key: run.data.tags[key] for key in LINEAGE if key in run.data.tags}
    tags |= {"tlresearch.run": run.info.run_id, "tlresearch.run_name": run.info.run_name or ""}
    inputs = run.inputs.dataset_inputs if run.inputs else []
    if inputs:
        tags[FINGERPRINT] = json.loads(inputs[0].dataset.profile or "{}").get("digest", inputs[0].dataset.digest)
    return tags


def _registered(store: Store, text: str) -> LoggedModel:
    from mlflow.exceptions import MlflowException

    match = _REGISTERED.match(text)
    if match is None:
        raise TrackingError(f"'{text}' is no registered model: write models:/name@alias or models:/name/2")
    name, alias, number = match["name"], match["alias"], match["version"]
    client = store.client
    try:
        version = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        names = [model.name for model in client.search_registered_models()]
        if name not in names:
            listing = f"; registered are {', '.join(names)}" if names else "; nothing is registered yet"
            raise TrackingError(f"no model is registered as '{name}'{nearest(name, names) or listing}") from None
        raise TrackingError(f"{text}: {first_line(error)}") from None
    if MODEL not in version.tags:
        raise TrackingError(
            f"{text} was not registered by tlresearch; to register the model of a run: tlresearch register RUN {name}"
        )
    return LoggedModel(version.tags[MODEL], str(version.run_id), f"{name} version {version.version}")


def _ensure_name(store: Store, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.get_registered_model(name)
    except MlflowException:
        store.client.create_registered_model(name, tags={"tlresearch": "true"})


def _new_version(store: Store, name: str, model: LoggedModel, tags: dict[str, str]) -> ModelVersion:
    with _as_global(store):
        return store.client.create_model_version(
            name,
            f"models:/{model.model_id}",
            run_id=model.run_id,
            tags=tags,
            description=f"Trained in {model.name}.",
            model_id=model.model_id,
        )


@contextlib.contextmanager
def _as_global(store: Store) -> Iterator[None]:
    """Makes a store MLflow's global one while the context lasts.

    `create_model_version` resolves ``models:/<id>`` through the global store, whatever store the client has.
    """
    import mlflow

    # `set_tracking_uri` also writes the environment variable, which subprocesses would inherit.
    name = "MLFLOW_TRACKING_URI"
    was_set = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    uri, variable = mlflow.get_tracking_uri(), os.environ.get(name)
    mlflow.set_tracking_uri(store.uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(uri if was_set else "")
        os.environ.pop(name, None)
        if variable is not None:
            os.environ[name] = variable
