"""The manifest of a run: SHA-256 of every artifact, itself written as an artifact, so that damage can be detected."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlresearch.base.files import sha256
from tlresearch.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

NAME = "artifacts.json"


@dataclass
class Manifest:
    """Hashes of a run's artifacts.

    Attributes:
        files: SHA-256 of each artifact by its path.
        models: SHA-256 of each file of a logged model by its path, by the model's id.
    """

    files: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, source: Path, place: str) -> None:
        """Adds a file that is stored as `place`, or a folder whose content is stored below `place`."""
        self.files |= hashes(source, place)

    def add_text(self, text: str, place: str) -> None:
        """Adds a text that is stored as `place`."""
        self.files[place] = hashlib.sha256(text.encode()).hexdigest()

    def add_stored(self, store: Store, run_id: str) -> None:
        """Adds the artifacts that an earlier process of a continued run stored; hashes what it left no hash of."""
        if NAME in (paths := set(_stored_paths(store, run_id))):
            earlier = read_manifest(store, run_id)
            self.files = {**earlier.files, **self.files} if earlier else self.files
            self.models = {**earlier.models, **self.models} if earlier else self.models
        root = store.client.get_run(run_id).info.artifact_uri
        for path in paths - set(self.files) - {NAME}:
            with local(store, f"{root}/{path}") as file:
                self.add(file, path)

    def write(self, store: Store, run_id: str) -> None:
        """Stores the hashes as an artifact."""
        content = {"files": dict(sorted(self.files.items())), "models": self.models}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / NAME
            file.write_text(json.dumps(content, indent=1))
            store.client.log_artifact(run_id, str(file))


def read_manifest(store: Store, run_id: str) -> Manifest | None:
    """Reads the manifest of a run; `None` if it has none."""
    content = read_json(store, run_id, NAME)
    return Manifest(content["files"], content["models"]) if content else None


def read_json(store: Store, run_id: str, path: str) -> dict[str, Any] | None:
    """Reads a JSON artifact of a run; `None` if it is missing or cannot be read."""
    try:
        content = json.loads(read_text(store, run_id, path) or "")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def read_text(store: Store, run_id: str, path: str) -> str | None:
    """Reads a text artifact of a run; `None` if it is missing or cannot be read."""
    from mlflow.exceptions import MlflowException

    try:
        with local(store, f"{store.client.get_run(run_id).info.artifact_uri}/{path}") as file:
            return file.read_text(encoding="utf-8")
    except (MlflowException, OSError, UnicodeDecodeError):
        return None


@contextlib.contextmanager
def local(store: Store, address: str) -> Iterator[Path]:
    """Yields the local path of a stored file or folder; of a remote store, the path of a temporary copy."""
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as scratch:
        here = "://" not in address or address.startswith("file:")
        # Without a destination MLflow returns the path of a local artifact itself and copies nothing.
        yield Path(download_artifacts(address, dst_path=None if here else scratch, tracking_uri=store.uri))


def damaged(store: Store, run: Run, manifest: Manifest) -> list[str]:
    """Checks all artifacts of a run; returns a line for each that is missing or has changed."""
    lines = [
        _damage(store, f"{run.info.artifact_uri}/{path}", expected, path) for path, expected in manifest.files.items()
    ]
    for model, files in manifest.models.items():
        root = model_address(store, model)
        lines += [_damage(store, f"{root}/{path}", expected, f"model/{path}") for path, expected in files.items()]
    return [line for line in lines if line]


def model_address(store: Store, model_id: str) -> str:
    """Address of the folder with the files of a logged model."""
    with store.errors():
        return str(store.client.get_logged_model(model_id).artifact_location)


def _damage(store: Store, address: str, expected: str, shown: str) -> str:
    """Says what is wrong with an artifact; empty if it is whole.

    Artifacts are fetched singly: when a folder is fetched, one missing file makes the whole request fail.
    """
    from mlflow.exceptions import MlflowException

    try:
        with local(store, address) as file:
            return "" if sha256(file) == expected else f"{shown} has changed"
    except (MlflowException, OSError):
        return f"{shown} is missing"


def hashes(source: Path, place: str) -> dict[str, str]:
    """Returns the SHA-256 of a file, or of each file below a folder, by artifact path."""
    if source.is_file():
        return {place: sha256(source)}
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return {f"{place}/{path.relative_to(source).as_posix()}".lstrip("/"): sha256(path) for path in files}


def _stored_paths(store: Store, run_id: str, folder: str | None = None) -> Iterator[str]:
    for item in store.client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from _stored_paths(store, run_id, item.path)
        else:
            yield item.path


def add_to_ended_run(
    store: Store,
    run_id: str,
    *,
    tags: Mapping[str, str],
    texts: Mapping[str, str] | None = None,
    files: Mapping[str, Path] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Adds tags, metrics and artifacts to a run that has ended; its status and times stay as they are.

    Args:
        store: The store.
        run_id: The run.
        tags: Tags; they replace existing values.
        texts: Text artifacts by path.
        files: Files, or folders with their content, by artifact path.
        metrics: Metrics; an existing metric gets a newer point.
    """
    from mlflow.entities import Metric

    from tlresearch.base.redact import redact
    from tlresearch.tracking import values

    with store.errors():
        for key, value in values.tags(tags).items():
            store.client.set_tag(run_id, key, value)
        now = int(time.time() * 1000)
        points = [Metric(values.metric_key(name), float(value), now, 0) for name, value in (metrics or {}).items()]
        for start in range(0, len(points), 500):  # MLflow takes 1000 per request
            store.client.log_batch(run_id, metrics=points[start : start + 500], synchronous=True)
        if not texts and not files:
            return
        # The manifest is read and written as a whole: the run has ended, so nobody else writes it.
        manifest = Manifest()
        manifest.add_stored(store, run_id)
        with tempfile.TemporaryDirectory() as scratch:
            for place, text in (texts or {}).items():
                file = Path(scratch) / Path(place).name
                file.write_text(redact(text))
                _store(store, run_id, file, place)
                manifest.add(file, place)
            for place, file in (files or {}).items():
                if file.is_file() and file.name != Path(place).name:  # MLflow keeps the name of a file
                    file = Path(shutil.copy(file, Path(scratch) / Path(place).name))
                _store(store, run_id, file, place)
                manifest.add(file, place)
        manifest.write(store, run_id)


def _store(store: Store, run_id: str, file: Path, place: str) -> None:
    if file.is_dir():
        store.client.log_artifacts(run_id, str(file), place)
    else:
        parent = str(Path(place).parent)
        store.client.log_artifact(run_id, str(file), None if parent == "." else parent)
