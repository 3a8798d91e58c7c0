"""Stores a trained model as an MLflow model of its run: code by name, weights as safetensors, no pickle."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tlresearch.base.errors import TrackingError, first_line
from tlresearch.base.quiet import quiet
from tlresearch.tracking import values
from tlresearch.tracking.loaders import SETTINGS, rebuild
from tlresearch.tracking.manifest import hashes, local, model_address
from tlresearch.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import PyFuncModel

    from tlresearch.tracking.base import Run

NAME = "model"
_OWN_CLASSES = ".*inferred as AnyType"  # what MLflow warns of its own classes, when it is imported
REQUIREMENTS = ("mlflow", "torch", "torchvision", "safetensors", "omegaconf", "pillow", "numpy", "pandas")


def log_model(
    run: Run,
    folder: Path,
    classes: Sequence[str],
    *,
    loader: str,
    columns: Sequence[str] = (),
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, object] | None = None,
    step: int = 0,
    extra_requirements: Sequence[str] = (),
) -> None:
    """Stores the model under ``model``; ``mlflow.pyfunc.load_model("runs:/<run id>/model")`` loads it.

    Args:
        run: The run it was trained in.
        folder: All that the loader needs: weights as safetensors, config and labels as text.
        classes: Class names in the order of their numbers.
        loader: Dotted path of ``load(folder) -> Predictor``; called where the model is used. See `Predictor`.
        columns: What it answers with, where that is not a class with probabilities.
        metrics: Metrics of this model, shown in the table of models.
        params: Params shown there.
        step: Epoch the weights are from.
        extra_requirements: Packages beside the usual ones, such as ``timm``.
    """
    now = int(time.time() * 1000)
    about = {
        "classes": list(classes),
        "loader": loader,
        "columns": list(columns),
        "points": [[values.metric_key(name), float(value), now, step] for name, value in (metrics or {}).items()],
        "params": {name: text[:250] for name, text in values.params(params or {})[0].items()},
        "step": step,
        "extra": list(extra_requirements),
    }
    run.log_model(about, folder)


def store_model(
    store: Store,
    run_id: str,
    experiment_id: str,
    folder: Path,
    *,
    classes: Sequence[str],
    loader: str,
    columns: Sequence[str],
    points: Sequence[Sequence[Any]],
    params: dict[str, str],
    step: int,
    extra: Sequence[str],
    again: bool,
) -> tuple[str, dict[str, str]]:
    """Makes what `log_model` asked for; with `again` a model that was begun before is finished instead.

    Returns:
        Id of the model, and SHA-256 of each of its files.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
    from mlflow.models import Model

    client = store.client
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = Path(scratch) / NAME
        shutil.copytree(folder, artifacts)
        (artifacts / SETTINGS).write_text(json.dumps({"loader": loader, "classes": list(classes)}, indent=1))
        begun = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'") if again else []
        logged = next((model for model in begun if model.name == NAME), None) or client.create_logged_model(
            experiment_id, name=NAME, source_run_id=run_id, params=params, model_type="classifier"
        )
        status = LoggedModelStatus.FAILED
        try:
            target = Path(scratch) / "stored"
            entry = Model(run_id=run_id, artifact_path=NAME, model_id=logged.model_id, model_uuid=logged.model_id)
            _save(target, artifacts, entry, signature(classes, columns), _requirements(extra))
            client.log_model_artifacts(logged.model_id, str(target))
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
            metrics = [
                Metric(key, value, now, at, model_id=logged.model_id, run_id=run_id) for key, value, now, at in points
            ]
            if metrics:
                client.log_batch(run_id, metrics=metrics, synchronous=True)
            status = LoggedModelStatus.READY
            hashed = hashes(target, "")
        finally:
            client.finalize_logged_model(logged.model_id, status)
    return str(logged.model_id), hashed


def load_model(store: Store, model_id: str) -> PyFuncModel:
    """Loads a logged model as whoever serves it does.

    Raises:
        TrackingError: If it is not there or not whole.
    """
    with store.errors(), quiet("mlflow.pyfunc", messages=[_OWN_CLASSES]):
        import mlflow.pyfunc

        with local(store, model_address(store, model_id)) as folder:
            _check_code(folder, model_id)
            model: PyFuncModel = mlflow.pyfunc.load_model(str(folder))
    return model


def _check_code(folder: Path, model_id: str) -> None:
    """Refuses a stored model that would run other code than ours, or unpickle something, when MLflow loads it.

    Raises:
        TrackingError: If it would.
    """
    flavors = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))["flavors"]
    about = flavors.get("python_function", {})
    code = folder / Path(str(about.get("model_code_path", ""))).name
    others = [key for key in ("python_model", "code", "data") if about.get(key)]
    same = code.is_file() and code.read_bytes() == _code_of_models().read_bytes()
    if about.get("loader_module") != "mlflow.pyfunc.loaders.code_model" or others or not same:
        raise TrackingError(
            f"model {model_id} is refused: it brings code of its own, which would run when it is loaded; "
            "models of runs recorded by this version of tlresearch do not (tlresearch predict runs no code of a model)"
        )


def _code_of_models() -> Path:
    # Located without importing it: it is MLflow's to run, and registers a model when it is run.
    spec = importlib.util.find_spec("tlresearch.tracking.served")
    if spec is None or spec.origin is None:
        raise TrackingError("tlresearch.tracking.served is missing from this installation")
    return Path(spec.origin)


def load_predictor(store: Store, model_id: str) -> Any:
    """Rebuilds the predictor of a logged model, without MLflow around it.

    Raises:
        TrackingError: If it is not there or not whole, or its loader is not trusted.
    """
    with store.errors(), local(store, f"{model_address(store, model_id)}/artifacts/{NAME}") as folder:
        try:
            return rebuild(folder)
        except (ValueError, KeyError, AttributeError, ModuleNotFoundError) as error:
            raise TrackingError(f"model {model_id} cannot be rebuilt: {first_line(error)}") from None


def signature(classes: Sequence[str], columns: Sequence[str] = ()) -> ModelSignature:
    """The columns a stored model returns.

    The input stays open: MLflow can only describe a data frame or an array, and the model takes both.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Schema, TensorSpec

    if columns:
        anything = AnyType()  # type: ignore[no-untyped-call]
        return ModelSignature(outputs=Schema([ColSpec(anything, name) for name in columns]))
    probabilities = [ColSpec(DataType.double, f"p({name})") for name in classes]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "class"),
        ColSpec(DataType.double, "probability"),
        *probabilities,
    ]
    return ModelSignature(outputs=Schema(outputs))


def _save(target: Path, artifacts: Path, entry: Any, described: ModelSignature, needed: list[str]) -> None:
    code = str(_code_of_models())
    # MLflow asks for an input example, which it would store and check, and for pip's version.
    with quiet("mlflow.utils.environment", messages=[_OWN_CLASSES, ".*input example was not provided"]):
        import mlflow.pyfunc

        mlflow.pyfunc.save_model(
            path=str(target),
            python_model=code,
            artifacts={NAME: str(artifacts)},
            mlflow_model=entry,
            signature=described,
            # Given, as finding them out would load the model in a process of its own for ten seconds.
            pip_requirements=needed,
        )


def _requirements(extra: Sequence[str]) -> list[str]:
    pinned = []
    for name in (*REQUIREMENTS, *extra):
        try:
            # Local parts such as +cu126 are of one index only, and nobody could install them elsewhere.
            pinned.append(f"{name}=={re.sub(r'[+].*', '', metadata.version(name))}")
        except metadata.PackageNotFoundError:
            pinned.append(name)
    return pinned
