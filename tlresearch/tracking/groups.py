"""Groups in the MLflow store: one parent run, one nested run per seed, and the record of the finished ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tlresearch.tracking.base import Run
from tlresearch.tracking.records import children, search
from tlresearch.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run as StoredRun

GROUP = "tlresearch.group"
"""Tag of a group's parent run and of its children: what identifies the group."""
SEED = "tlresearch.seed"
"""Tag of a group's children: their seed."""
_RECORD = "seeds.json"


@dataclass(frozen=True)
class SeedRun:
    """One finished run of a group.

    Attributes:
        seed: Its seed.
        run_id: Its MLflow run.
        metrics: Metrics of the selected epoch, and ``test/...`` where the test split was evaluated.
        history: Metrics of every epoch.
        seconds: Wall time.
    """

    seed: int
    run_id: str
    metrics: dict[str, float]
    history: list[dict[str, float]]
    seconds: float


def is_group(run: StoredRun) -> bool:
    """Whether a run is the parent of a group."""
    return GROUP in run.data.tags and SEED not in run.data.tags


def groups(store: Store, identity: str) -> list[StoredRun]:
    """The parent runs of a group, newest first."""
    return [run for run in search(store, f"tags.`{GROUP}` = '{identity}'") if SEED not in run.data.tags]


def log_finished(group: Run, runs: Sequence[SeedRun]) -> None:
    """Records the finished seeds on the parent run; a later record replaces an earlier one."""
    group.log_dict({"seeds": [asdict(run) for run in runs]}, _RECORD)


def finished(store: Store, run_id: str) -> dict[int, SeedRun]:
    """The finished seeds of a group by its parent run."""
    with store.errors():
        if not any(item.path == _RECORD for item in store.client.list_artifacts(run_id)):
            return {}
        record = json.loads(Path(store.client.download_artifacts(run_id, _RECORD)).read_text())
    return {entry["seed"]: SeedRun(**entry) for entry in record["seeds"]}


def recovered(store: Store, run_id: str) -> dict[int, SeedRun]:
    """The finished seeds of a group that was interrupted, those too that its process did not live to record."""
    done = finished(store, run_id)
    for run in children(store, run_id):
        seed = int(run.data.tags.get(SEED, -1))
        if seed >= 0 and seed not in done and run.info.status == "FINISHED":
            done[seed] = _read_run(store, run, seed)
    return done


def _read_run(store: Store, run: StoredRun, seed: int) -> SeedRun:
    """Reads from the run itself what its group would have recorded of it."""
    selected = "selected/"
    found = run.data.metrics.items()
    metrics = {key.removeprefix(selected): value for key, value in found if key.startswith(selected)}
    del metrics["epoch"]
    epochs: dict[int, dict[str, float]] = {}
    for key in metrics:
        if not key.startswith("test/"):
            with store.errors():
                points = store.client.get_metric_history(run.info.run_id, key)
            for point in points:
                epochs.setdefault(point.step, {})[key] = point.value
    metrics |= {key: value for key, value in found if key.startswith(("shift/", "gap/"))}
    seconds = (run.info.end_time - run.info.start_time) / 1000
    return SeedRun(seed, run.info.run_id, metrics, [epochs[step] for step in sorted(epochs)], round(seconds, 2))
