"""Trained models: finding one by run or by registered name, and registering one with its lineage."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlresearch.base.errors import TrackingError, first_line, nearest
from tlresearch.tracking.records import Record, Runs
from tlresearch.tracking.store import Store

if TYPE_CHECKING:
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
        run: The run in which it was trained.
        name: Its name in messages, such as ``probe (run 3f2a9c1b)`` or ``digits version 2``.
    """

    model_id: str
    run: Record
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


def find_model(runs: Runs, text: str | Record) -> LoggedModel:
    """Finds a model by its run (id, beginning of the id, or name), or as ``models:/name@alias`` or ``models:/name/2``.

    Raises:
        TrackingError: If there is none.
    """
    if isinstance(text, str) and text.startswith("models:"):
        return _registered(runs, text)
    run = runs.find(text)
    return LoggedModel(run.model_id, run, f"{run.name} (run {run.short})")


def register(runs: Runs, run: str | Record, name: str, alias: str | None = None) -> Registered:
    """Registers a run's model; the alias, if there is one, moves to it.

    Args:
        runs: The runs of the store.
        run: The run, or its id, the beginning of its id, or its name.
        name: Name in the registry; it is created if necessary.
        alias: Such as ``champion``.

    Raises:
        TrackingError: If there is no such model, or MLflow rejects the name or the alias.
    """
    model, store = find_model(runs, run), runs.store
    tags = {**lineage(model.run), MODEL: model.model_id}
    with store.errors():
        _ensure_name(store, name)
        versions = store.client.search_model_versions(f"name = '{name}'")
        # MLflow would make another version of the same model at every call.
        existing = next((version for version in versions if version.tags.get(MODEL) == model.model_id), None)
        version = existing or _new_version(store, name, model, tags)
        if alias:
            store.client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version), existing is None, tags)


def lineage(run: Record) -> dict[str, str]:
    """Returns the origin of a run's model as tags: run, data (with the whole fingerprint), weights and code."""
    tags = {key: run.tags[key] for key in LINEAGE if key in run.tags}
    tags |= {"tlresearch.run": run.run_id, "tlresearch.run_name": run.name}
    if run.splits:
        tags[FINGERPRINT] = run.splits[0][1].get("digest", "")
    return tags


def _registered(runs: Runs, text: str) -> LoggedModel:
    from mlflow.exceptions import MlflowException

    match = _REGISTERED.match(text)
    if match is None:
        raise TrackingError(f"'{text}' is no registered model: write models:/name@alias or models:/name/2")
    name, alias, number = match["name"], match["alias"], match["version"]
    client = runs.store.client
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
    return LoggedModel(version.tags[MODEL], runs.get(str(version.run_id)), f"{name} version {version.version}")


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
            run_id=model.run.run_id,
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
