"""One run in MLflow from start to end: the only writer of params, metrics, tags and artifacts."""

from __future__ import annotations

import json
import logging
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml

from tlresearch.config.schema import TrackingConfig
from tlresearch.errors import TrackingError
from tlresearch.tracking import values
from tlresearch.tracking.dataset import dataset_input
from tlresearch.tracking.ending import OpenRuns, TerminationGuard
from tlresearch.tracking.manifest import Manifest
from tlresearch.tracking.owner import Ownership
from tlresearch.tracking.redact import redact
from tlresearch.tracking.store import Store, connect, one_line, run_url
from tlresearch.tracking.system import SystemMetrics
from tlresearch.tracking.writer import MetricWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

STATE = "tlresearch.state"
REASON = "tlresearch.reason"
FAILURE = "tlresearch.failure"
PRUNED_MARK = "✂ "  # in front of the name: the UI cuts long names at their end
_NOTE = "mlflow.note.content"
_open_runs = OpenRuns()


def open_run(
    config: TrackingConfig,
    *,
    experiment: str,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, str],
    description: str = "",
    parent: str | None = None,
    run_id: str | None = None,
) -> TrackedRun:
    """Starts a run, or continues one.

    Args:
        config: Where and how much is recorded.
        experiment: MLflow experiment, unless the config names one.
        name: Name of the run.
        params: Params; any length, secrets are hidden.
        tags: Tags, beside those of the config.
        description: Markdown shown on top of the run's page.
        parent: Run id of the run this one is nested in.
        run_id: Run to continue: it is RUNNING again, and points it holds already are not stored twice.

    Raises:
        TrackingError: If the store cannot be reached, or does not hold `run_id`.
    """
    store = connect(config.uri)
    tags = {**config.tags, **tags}
    if parent:
        tags["mlflow.parentRunId"] = parent
    if description:
        tags[_NOTE] = description
    with store.errors():
        if run_id is None:
            experiment_id = store.experiment_id(config.experiment or experiment)
            cleaned = values.tags(tags)
            run_id = store.client.create_run(experiment_id, tags=cleaned, run_name=redact(name)).info.run_id
            run = TrackedRun(store, run_id, experiment_id, name, resumed=False)
        else:
            run = _continue(store, run_id, tags)
    run.description = description
    run.log_params(params)
    if config.system_metrics:
        run.start_system_metrics()
    return run


def _continue(store: Store, run_id: str, tags: Mapping[str, str]) -> TrackedRun:
    found = store.client.get_run(run_id)
    if found.info.lifecycle_stage == "deleted":
        raise TrackingError(f"run {run_id} was deleted in MLflow; restore it there, or start a new run")
    run = TrackedRun(store, run_id, found.info.experiment_id, found.info.run_name or "", resumed=True)
    store.client.update_run(run_id, status="RUNNING")
    found = store.client.get_run(run_id)  # as whoever wrote it before has left it
    run.params = dict(found.data.params)
    for tag in (STATE, REASON, FAILURE):
        if tag in found.data.tags:
            store.client.delete_tag(run_id, tag)
    run.set_tags(tags)
    return run


class TrackedRun:
    """A run in MLflow. As a context manager it ends with the status that is true: see `__exit__`.

    Attributes:
        run_id: Its id.
        experiment_id: The experiment it belongs to.
        name: Its name; `description`: Markdown of its page.
        resumed: Whether it was continued.
        params: Params as stored; `status`: ``RUNNING``, or how it ended.
        manifest: Hashes of its artifacts.
    """

    def __init__(self, store: Store, run_id: str, experiment_id: str, name: str, *, resumed: bool) -> None:
        self.store = store
        self.run_id, self.experiment_id = run_id, experiment_id
        self.name = name
        self.resumed = resumed
        self.description, self.params = "", dict[str, str]()
        self.manifest = Manifest()
        self.status: Status | Literal["RUNNING"] = "RUNNING"
        self._long_params: dict[str, str] = {}
        self._owner = Ownership(run_id)
        self._writer = MetricWriter(store, run_id, resumed=resumed)
        self._system: SystemMetrics | None = None
        self._pruned = False
        self._signals = TerminationGuard()
        _open_runs.add(self)

    @property
    def url(self) -> str:
        """Address of the run in the UI."""
        return run_url(self.store.ui, self.experiment_id, self.run_id)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Stores params. One that is stored already keeps its value: MLflow does not let it change."""
        from mlflow.entities import Param

        short, whole = values.params(params)
        changed = {key: value for key, value in short.items() if self.params.get(key, value) != value}
        if changed:
            listing = ", ".join(f"{key}: {self.params[key]} -> {value}" for key, value in sorted(changed.items()))
            _log.warning("run %s was started with other values: %s", self.run_id, listing)
            self.set_tags({"tlresearch.changed": listing})
        fresh = [Param(key, value) for key, value in short.items() if key not in self.params]
        with self.store.errors():
            for start in range(0, len(fresh), 100):
                self.store.client.log_batch(self.run_id, params=fresh[start : start + 100], synchronous=True)
        self.params.update({param.key: param.value for param in fresh})
        if whole:
            self._long_params.update(whole)
            self.log_dict(self._long_params, "config/long_params.json")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes metrics (NaN and infinity too) and returns at once; a thread writes them in batches."""
        self._writer.add(metrics, step)

    def last_step(self, metric: str) -> int:
        """The largest step recorded for a metric; -1 if there is none."""
        return self._writer.last_step(metric)

    def flush(self) -> bool:
        """Writes waiting metrics now, such as next to a checkpoint; returns whether the store took them."""
        return self._writer.flush()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a later value replaces an earlier one."""
        from mlflow.entities import RunTag

        cleaned = [RunTag(key, value) for key, value in values.tags(tags).items()]
        with self.store.errors():
            for start in range(0, len(cleaned), 100):
                self.store.client.log_batch(self.run_id, tags=cleaned[start : start + 100], synchronous=True)

    def log_text(self, text: str, path: str) -> None:
        """Stores text as an artifact."""
        self._log_clean(redact(text), path)

    def log_dict(self, content: Mapping[str, Any], path: str) -> None:
        """Stores a mapping as an artifact, as JSON or YAML after the path's suffix."""
        clean = values.clean("", content)
        as_json = path.endswith(".json")
        self._log_clean(json.dumps(clean, indent=2, default=str) if as_json else yaml.safe_dump(clean), path)

    def _log_clean(self, text: str, path: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            file.write_text(text, encoding="utf-8")
            self.log_file(file, str(Path(path).parent))

    def log_file(self, file: Path, folder: str = "") -> None:
        """Stores a file, or a folder with all it holds, as artifacts under `folder`."""
        place = Path(folder or (file.name if file.is_dir() else "")).as_posix().removeprefix(".")
        with self.store.errors():
            if file.is_dir():
                self.store.client.log_artifacts(self.run_id, str(file), place)
            else:
                self.store.client.log_artifact(self.run_id, str(file), place or None)
        self.manifest.add(file, place if file.is_dir() else f"{place}/{file.name}".removeprefix("/"))

    def log_figure(self, figure: Figure, path: str) -> None:
        """Stores a figure as an artifact such as ``figures/curves.png``."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            figure.savefig(file, dpi=150)
            self.log_file(file, str(Path(path).parent))

    def log_dataset(
        self,
        name: str,
        digest: str,
        *,
        source: str,
        context: str,
        schema: Mapping[str, str] | None = None,
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """Records a split of the data the run used; no data is copied.

        Args:
            name: Name of the data set.
            digest: Its content hash; MLflow keeps 36 characters, the profile all of it.
            source: Where it came from, such as a path or an address.
            context: ``train``, ``val`` or ``test``.
            schema: Type by column, such as ``{"image": "binary", "label": "string"}``.
            profile: Numbers such as samples per class.
        """
        entry = dataset_input(name, digest, source, context, schema, profile)
        with self.store.errors():
            self.store.client.log_inputs(self.run_id, [entry])

    def download(self, path: str) -> Path:
        """Returns a local copy of an artifact, a file or a folder."""
        with self.store.errors():
            return Path(self.store.client.download_artifacts(self.run_id, path))

    def start_system_metrics(self) -> None:
        """Measures processor, memory, disk and GPU until the run ends."""
        if self._system is None:
            first = self.last_step("system/cpu_utilization_percentage") + 1
            self._system = SystemMetrics(self.run_id, self.store.uri, self.log_metrics, first)

    def mark_pruned(self, reason: str) -> None:
        """Marks a run that a pruner stopped: it ends FINISHED, with a mark in front of its name."""
        self._pruned = True
        self.set_tags({STATE: "pruned", REASON: reason, _NOTE: f"**Pruned:** {reason}\n\n{self.description}".rstrip()})
        with self.store.errors():
            self.store.client.update_run(self.run_id, name=f"{PRUNED_MARK}{self.name.removeprefix(PRUNED_MARK)}")

    def close(self, status: Status = "FINISHED") -> None:
        """Writes what waits and ends the run; a second call does nothing.

        Raises:
            TrackingError: If metrics or the status could not be written.
        """
        if self.status != "RUNNING":
            return
        self.status = status
        _open_runs.discard(self)
        if self._system is not None:
            self._system.stop()
        try:
            self._writer.close()
            with self.store.errors():
                if self.resumed:
                    self.manifest.missing(self.store, self.run_id)
                self.manifest.write(self.store, self.run_id)
        finally:
            with self.store.errors():
                self.store.client.set_terminated(self.run_id, status)
            self._owner.release()

    def abandon(self) -> None:
        """Closes a run nobody closed before the process ended."""
        try:
            self.set_tags({FAILURE: "the process ended without closing the run"})
            self.close("FAILED")
        except TrackingError as trouble:
            _log.warning("%s", trouble)

    def __enter__(self) -> Self:
        self._signals.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the run: FINISHED, KILLED (interrupted, terminated, exited) or FAILED, and says why."""
        with self._signals.closing():
            try:
                self._note_failure(error)
                self.close(self._status_after(error))
            except TrackingError as trouble:
                # The error that ended the run is the one to see.
                if error is None:
                    raise
                _log.warning("%s", trouble)

    def _status_after(self, error: BaseException | None) -> Status:
        if error is None or (self._pruned and type(error).__name__ == "TrialPruned"):
            return "FINISHED"
        return "FAILED" if isinstance(error, Exception) else "KILLED"

    def _note_failure(self, error: BaseException | None) -> None:
        if self.status != "RUNNING" or self._status_after(error) == "FINISHED" or error is None:
            return
        try:
            self.set_tags({FAILURE: f"{type(error).__name__}: {one_line(error)}"})
            if isinstance(error, Exception):
                self.log_text("".join(traceback.format_exception(error)), "failure.txt")
        except TrackingError as trouble:
            _log.warning("the reason of the failure could not be recorded: %s", trouble)
