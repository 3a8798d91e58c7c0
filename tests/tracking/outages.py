"""What the tests of outages record, and how they compare two records."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.calls import LOCAL_ID
from tlresearch.tracking.manifest import NAME, damaged, local, read_manifest
from tlresearch.tracking.model import log_model
from tlresearch.tracking.run import JournalRun, open_run
from tlresearch.tracking.store import Store

EPOCHS = 4
IDS = ("mlflow.log-model.history", "mlflow.user", "mlflow.parentRunId", "mlflow.source.name", LOCAL_ID)


def start(uri: str | None = None, name: str = "run", **about: Any) -> JournalRun:
    config = TrackingConfig(uri=uri, system_metrics=False)
    return open_run(config, experiment="outage", name=name, params={"optimizer.lr": 0.1}, tags={"a": "b"}, **about)


def wait_until(condition: Callable[[], object], patience: float = 60.0) -> None:
    """Waits for what happens soon on any machine."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(run: JournalRun) -> None:
    """Leaves a run as the system does when its process is killed: nothing ends it, and its lock is free."""
    run._release(delivered=False)
    run.status = "KILLED"


def artifact(run: JournalRun, path: str) -> Path:
    """A local copy of an artifact of a run."""
    return Path(run.store.client.download_artifacts(run.run_id, path))


def record(
    run: JournalRun, scratch: Path, disturb: Callable[[int], None] = lambda epoch: None, *, model: bool = True
) -> None:
    """Records some of everything; `disturb` is called in front of each epoch, and at last with their number."""
    with run:
        run.log_dataset("set", "ab" * 32, source="somewhere", context="train", profile={"samples": 3})
        for epoch in range(EPOCHS):
            disturb(epoch)
            run.log_metrics({"val/accuracy": epoch / EPOCHS, "train/loss": float("nan") if epoch == 1 else 1.0}, epoch)
            assert run.flush()
            run.set_tags({"epoch": str(epoch)})
            run.log_text(f"epoch {epoch}", f"texts/{epoch}.txt")
        run.log_params({"late": "param", "long": "x" * 7000})
        run.count("tested")
        (scratch / "folder").mkdir(exist_ok=True)
        (scratch / "folder" / "inner.bin").write_bytes(b"\0" * 100_000)
        run.log_file(scratch / "folder", "files")
        (scratch / "folder" / "inner.bin").write_bytes(b"changed afterwards")
        if model:
            (scratch / "model").mkdir(exist_ok=True)
            (scratch / "model" / "weights.bin").write_bytes(b"\1" * 1000)
            log_model(run, scratch / "model", ["x", "y"], loader="tests.nothing.load", metrics={"val/accuracy": 0.75})
        run.mark_pruned("for a reason")
        disturb(EPOCHS)


def content(store: Store, run_id: str) -> dict[str, Any]:
    """All that a store holds of a run, but for ids and times."""
    client = store.client
    found = client.get_run(run_id)
    assert found.info.status != "RUNNING"
    manifest = read_manifest(store, run_id)
    assert manifest is not None
    assert damaged(store, found, manifest) == []
    files = {}
    with local(store, found.info.artifact_uri) as folder:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != NAME:
                files[path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(manifest.files) <= set(files)
    models = client.search_logged_models([found.info.experiment_id], f"source_run_id = '{run_id}'")
    return {
        "status": found.info.status,
        "name": found.info.run_name,
        "params": found.data.params,
        "tags": {key: value for key, value in found.data.tags.items() if key not in IDS},
        "points": {
            key: [(point.step, repr(point.value)) for point in client.get_metric_history(run_id, key)]
            for key in sorted(found.data.metrics)
        },
        "files": files,
        "inputs": [(one.dataset.name, json.loads(one.dataset.profile)) for one in found.inputs.dataset_inputs],
        "models": [str(model.status) for model in models],
        "outputs": len(found.outputs.model_outputs) if found.outputs else 0,
        "model files": [len(each) for each in manifest.models.values()],
    }


@contextlib.contextmanager
def broken(database: Path) -> Iterator[None]:
    """A database that answers every question about runs with an error, until the context is left."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA legacy_alter_table=ON")
        connection.execute("ALTER TABLE runs RENAME TO away")
        try:
            yield
        finally:
            connection.execute("ALTER TABLE away RENAME TO runs")
