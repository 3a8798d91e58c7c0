"""SHA-256 of every artifact of a run, written at its end as an artifact itself, so that damage is found later."""

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
    """Hashes of what a run left.

    Attributes:
        files: SHA-256 of each artifact by its path.
        models: SHA-256 of each file of a logged model by its path, by the model's id.
    """

    files: dict[str, str] = field(default_factory=dict)
    models: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, source: Path, place: str) -> None:
        """Takes a file that is stored as `place`, or a folder whose content is stored below `place`."""
        self.files |= hashes(source, place)

    def add_text(self, text: str, place: str) -> None:
        """Takes text that is stored as `place`."""
        self.files[place] = hashlib.sha256(text.encode()).hexdigest()

    def missing(self, store: Store, run_id: str) -> None:
        """Takes the artifacts that an earlier process of a continued run stored."""
        if NAME in (paths := set(_stored(store, run_id))):
            before = read_manifest(store, run_id)
            self.files = {**before.files, **self.files} if before else self.files
            self.models = {**before.models, **self.models} if before else self.models
        place = store.client.get_run(run_id).info.artifact_uri
        for path in paths - set(self.files) - {NAME}:
            with local(store, f"{place}/{path}") as file:
                self.add(file, path)

    def write(self, store: Store, run_id: str) -> None:
        """Stores the hashes as an artifact."""
        content = {"files": dict(sorted(self.files.items())), "models": self.models}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / NAME
            file.write_text(json.dumps(content, indent=1))
            store.client.log_artifact(run_id, str(file))


def read_manifest(store: Store, run_id: str) -> Manifest | None:
    """Returns the hashes a run recorded; `None` if it has none."""
    content = read_json(store, run_id, NAME)
    return Manifest(content["files"], content["models"]) if content else None


def read_json(store: Store, run_id: str, path: str) -> dict[str, Any] | None:
    """Returns a JSON artifact of a run; `None` if it is not there or cannot be read."""
    try:
        content = json.loads(read_text(store, run_id, path) or "")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def read_text(store: Store, run_id: str, path: str) -> str | None:
    """Returns a text artifact of a run; `None` if it is not there or cannot be read."""
    from mlflow.exceptions import MlflowException

    try:
        with local(store, f"{store.client.get_run(run_id).info.artifact_uri}/{path}") as file:
            return file.read_text(encoding="utf-8")
    except (MlflowException, OSError, UnicodeDecodeError):
        return None


@contextlib.contextmanager
def local(store: Store, address: str) -> Iterator[Path]:
    """A stored file or folder on this machine: itself where the store is here, else a copy for a while."""
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory() as scratch:
        here = "://" not in address or address.startswith("file:")
        yield Path(download_artifacts(address, dst_path=None if here else scratch, tracking_uri=store.uri))


def damaged(store: Store, run: Run, manifest: Manifest) -> list[str]:
    """Returns one line per artifact that is missing or not what was stored."""
    found = [
        _state(store, f"{run.info.artifact_uri}/{path}", expected, path) for path, expected in manifest.files.items()
    ]
    for model, files in manifest.models.items():
        place = model_address(store, model)
        found += [_state(store, f"{place}/{path}", expected, f"model/{path}") for path, expected in files.items()]
    return [line for line in found if line]


def model_address(store: Store, model_id: str) -> str:
    """Where the files of a logged model lie."""
    with store.errors():
        return str(store.client.get_logged_model(model_id).artifact_location)


def _state(store: Store, address: str, expected: str, shown: str) -> str:
    """Says what is wrong with an artifact; each is fetched by itself, so that one that is missing hides no other."""
    from mlflow.exceptions import MlflowException

    try:
        with local(store, address) as file:
            return "" if sha256(file) == expected else f"{shown} has changed"
    except (MlflowException, OSError):
        return f"{shown} is missing"


def hashes(source: Path, place: str) -> dict[str, str]:
    """SHA-256 of a file, or of each file below a folder, by its path as an artifact."""
    if source.is_file():
        return {place: sha256(source)}
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return {f"{place}/{path.relative_to(source).as_posix()}".lstrip("/"): sha256(path) for path in files}


def _stored(store: Store, run_id: str, folder: str | None = None) -> Iterator[str]:
    for item in store.client.list_artifacts(run_id, folder):
        if item.is_dir:
            yield from _stored(store, run_id, item.path)
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
        tags: Tags; one that is there is replaced.
        texts: Content of each text artifact by path.
        files: Files, or folders with all they hold, by the path they are stored as.
        metrics: Metrics; a value that is there gets a newer one beside it.
    """
    from mlflow.entities import Metric

    from tlresearch.base.redact import redact
    from tlresearch.tracking import values

    with store.errors():
        for key, value in values.tags(tags).items():
            store.client.set_tag(run_id, key, value)
        now = int(time.time() * 1000)
        points = [Metric(values.metric_key(name), float(value), now, 0) for name, value in (metrics or {}).items()]
        for start in range(0, len(points), 500):
            store.client.log_batch(run_id, metrics=points[start : start + 500], synchronous=True)
        if not texts and not files:
            return
        manifest = Manifest()
        manifest.missing(store, run_id)
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
