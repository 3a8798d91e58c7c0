"""A run that records params, metrics, tags, artifacts and data: each becomes a call in the run's journal.

A metric's way to MLflow: `JournalRun.log_metrics` appends it to the journal (`tracking.journal`), the courier of the
store ships it (`tracking.courier`), `tracking.calls` makes the request.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml

from tlresearch.base.errors import TrackingError, first_line
from tlresearch.base.redact import redact
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking import values
from tlresearch.tracking.addresses import run_url
from tlresearch.tracking.base import Status
from tlresearch.tracking.calls import FAILURE, REASON, STATE, Call, is_local, new_local_id, resolve, stored_steps
from tlresearch.tracking.courier import (
    CourierProcess,
    CourierThread,
    courier_for,
    describe_waiting,
    end_call,
    outage,
    waiting,
)
from tlresearch.tracking.ending import OpenRuns, TerminationGuard
from tlresearch.tracking.journal import Progress, Writer, folder, journal_of
from tlresearch.tracking.manifest import Manifest
from tlresearch.tracking.provenance import VERSION
from tlresearch.tracking.store import Store, StoreAwayError, connect, resolve_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

PRUNED_MARK = "✂ "  # in front of the name, because the UI cuts long names at their end
_NOTE = "mlflow.note.content"
_FIRST_MEASUREMENT = 1.0  # seconds after the start, so that short runs get system metrics too
_LONGEST_PAUSE = 15.0  # seconds between two measurements
_POLL = 0.01  # seconds between two reads of the courier's progress
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
    deferred: bool = False,
) -> JournalRun:
    """Starts a run, or continues one.

    Args:
        config: The store, and what is recorded.
        experiment: MLflow experiment, unless the config names one.
        name: Name of the run.
        params: Params of any length; secrets are hidden.
        tags: Tags in addition to those of the config.
        description: Markdown shown on top of the run's page.
        parent: Id of the run in which this run is nested.
        run_id: Id or reference of the run to continue: it becomes RUNNING again, and no point is stored twice.
        deferred: Whether to wait for the store neither at the start nor at the end, as for a trial of a sweep.

    A single run needs the store now. A nested run can also be opened while the store is away.

    Raises:
        TrackingError: If the store cannot be reached, or does not hold `run_id`.
    """
    uri = resolve_uri(config.uri)
    courier = None
    if not deferred:
        connect(config.uri, check=parent is None)
        courier = courier_for(uri)
        courier.open()
    try:
        run = JournalRun(uri, name, run_id, nested=parent is not None, courier=courier)
    except BaseException:
        if courier is not None:
            courier.close()
        raise
    tags = {**config.tags, **tags}
    if parent:
        tags["mlflow.parentRunId"] = parent
    if description:
        tags[_NOTE] = description
    run.description = description
    run.begin(config.experiment or experiment, values.tags(tags), params)
    if config.system_metrics:
        run.start_system_metrics()
    return run


class JournalRun:
    """A run whose journal this process writes. As a context manager it ends with the status that is true.

    Args:
        uri: Address of its store.
        name: Its name.
        run_id: Id or reference of the run to continue.
        nested: Whether it belongs to another run.
        courier: The courier to wait for at the start and at the end; ``None`` waits for nothing.

    Attributes:
        name: Its name; `description`: Markdown of its page.
        status: ``RUNNING``, or how it ended.
        manifest: Hashes of its artifacts.

    Raises:
        TrackingError: If another process writes the run, or the journal cannot be written.
    """

    def __init__(
        self, uri: str, name: str, run_id: str | None, *, nested: bool, courier: CourierThread | CourierProcess | None
    ) -> None:
        journal = journal_of(run_id) if run_id else None
        reference = journal.reference if journal else run_id or new_local_id()
        mlflow_id = None if is_local(reference) else reference
        self._uri, self._label = uri, redact(uri)
        with _disk_errors(self._label):
            self._writer = Writer(
                reference, store=self._label, name=name, run_id=mlflow_id, continues=run_id is not None
            )
        self._run_id, self._experiment_id = mlflow_id, ""
        self._nested, self._courier = nested, courier
        self.name = name
        self.description = ""
        self.status: Status | Literal["RUNNING"] = "RUNNING"
        self.manifest = Manifest()
        self._long_params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._system: _SystemMetrics | None = None
        self._pruned = False
        self._signals = TerminationGuard()
        _open_runs.add(self)

    def begin(self, experiment: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        """Records the beginning of the run, and waits until MLflow has it, unless the run is deferred.

        Raises:
            TrackingError: If the store is away and the run is not nested, or the store refuses it.
        """
        calls = []
        if self._writer.fresh and is_local(self.reference):
            now = int(time.time() * 1000)
            fields = {"experiment": experiment, "name": redact(self.name), "tags": dict(tags), "time": now}
            calls.append(Call("create", fields))
        # A journal that is not fresh goes on after a kill; its `create` may be shipped already or still wait in it.
        if self._writer.journal.continues or not self._writer.fresh:
            calls.append(Call("reopen", {"tags": dict(tags)}))
        self._append(*calls)
        if self._courier is not None:
            try:
                self._await_begin(self._courier)
            except BaseException:
                self._give_up()
                raise
        self.log_params(params)

    def _await_begin(self, courier: CourierThread | CourierProcess) -> None:
        size = self._writer.journal.size
        progress = self._wait(courier, lambda now: now.offset >= size)
        if progress is None and not self._nested:
            noted = outage(self._label)
            raise StoreAwayError(noted.reason if noted else f"MLflow store {self._label} is away")
        if progress is not None:
            self._tags = progress.tags

    def _give_up(self) -> None:
        """Closes a run that could not be opened. Only a fresh journal is removed: another one holds earlier records."""
        _open_runs.discard(self)
        self.status = "FAILED"
        if self._writer.fresh:
            self._writer.remove()
        else:
            self._writer.release()
        if self._courier is not None:
            self._courier.close()

    @property
    def store(self) -> Store:
        """Its store."""
        return connect(self._uri, check=False)

    @property
    def reference(self) -> str:
        """Id by which `open_run` continues the run; known before MLflow has the run."""
        return self._writer.journal.reference

    @property
    def run_id(self) -> str:
        """Its id in MLflow; until that is known, its `reference`, which MLflow's run holds as a tag."""
        self._update_ids()
        return self._run_id or self.reference

    @property
    def experiment_id(self) -> str:
        """The experiment it belongs to; empty until MLflow has the run."""
        self._update_ids()
        return self._experiment_id

    @property
    def url(self) -> str:
        """Address of the run in the UI; empty until MLflow has it."""
        return run_url(self.store.ui, self.experiment_id, self.run_id) if self.experiment_id else ""

    def _update_ids(self) -> None:
        """Reads the ids that MLflow gave the run from the courier's progress, or from the store after delivery."""
        if self._run_id and self._experiment_id:
            return
        progress = self._writer.journal.progress()
        self._run_id = self._run_id or progress.run_id
        self._experiment_id = self._experiment_id or progress.experiment_id
        if self._run_id is None and self.status != "RUNNING" and not self._writer.journal.size:
            with self.store.errors():  # the journal has been delivered and removed
                self._run_id = resolve(self.store, self.reference)
                if self._run_id is not None:
                    self._experiment_id = self.store.client.get_run(self._run_id).info.experiment_id

    @property
    def begun(self) -> bool:
        """Whether an earlier process recorded the whole beginning of the run: its provenance comes last."""
        return VERSION in self._tags

    def start_system_metrics(self) -> None:
        """Measures processor, memory, disk and GPU until the run ends."""
        if self._system is None:
            first = self.last_step("system/cpu_utilization_percentage") + 1
            self._system = _SystemMetrics(self.run_id, self._uri, self.log_metrics, first)

    def last_step(self, metric: str) -> int:
        """The largest step of a metric, stored or waiting; -1 if there is none."""
        key, journal = values.metric_key(metric), self._writer.journal
        # Calls that wait in the journal count, and points that earlier processes shipped.
        steps = {
            point[3] for call, _ in journal.calls() for point in call.arguments.get("points", ()) if point[0] == key
        }
        if journal.continues and outage(self._label) is None:
            target = journal.target()
            if target.run_id is not None:
                with self.store.errors():
                    steps |= stored_steps(self.store, target, key)
        return max(steps, default=-1)

    def _append(self, *calls: Call) -> None:
        with _disk_errors(self._label):
            self._writer.append(*calls)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Stores params. A param that is stored keeps its value: MLflow does not let it change."""
        short, long = values.params(params)
        self._append(Call("batch", {"params": short}))
        if long:
            self._long_params.update(long)
            self.log_dict(self._long_params, "config/long_params.json")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Stores metrics, NaN and infinity too. Of two values for the same step, the first is kept."""
        now = int(time.time() * 1000)
        points = [[values.metric_key(key), float(value), now, int(step)] for key, value in metrics.items()]
        self._append(Call("batch", {"points": points}))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; a later value replaces an earlier one."""
        self._append(Call("batch", {"tags": values.tags(tags)}))

    def count(self, tag: str) -> None:
        """Adds one to a tag that is a number; a missing one is 0."""
        self._append(Call("count", {"tag": tag}))

    def log_text(self, text: str, path: str) -> None:
        """Stores text as an artifact."""
        self._log_clean(values.clean_yaml(text) if path.endswith(".yaml") else redact(text), path)

    def log_dict(self, content: Mapping[str, Any], path: str) -> None:
        """Stores a mapping as an artifact, as JSON or YAML after the path's suffix."""
        clean = values.clean("", content)
        as_json = path.endswith(".json")
        self._log_clean(json.dumps(clean, indent=2, default=str) if as_json else yaml.safe_dump(clean), path)

    def _log_clean(self, text: str, path: str) -> None:
        self.manifest.add_text(text, path)
        self._append(Call("texts", {"texts": {path: text}}))

    def log_file(self, file: Path, folder: str = "") -> None:
        """Stores a file, or a folder with all it holds, as artifacts under `folder`."""
        place = Path(folder or (file.name if file.is_dir() else "")).as_posix().removeprefix(".")
        self.manifest.add(file, place if file.is_dir() else f"{place}/{file.name}".removeprefix("/"))
        self._append(Call("file", {"place": place}, file))

    def log_figure(self, figure: Figure, path: str) -> None:
        """Stores a figure as an artifact such as ``figures/curves.png``."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(path).name
            figure.savefig(file, dpi=150)
            self.log_file(file, str(Path(path).parent))

    def log_model(self, arguments: Mapping[str, Any], folder: Path) -> None:
        """Stores a model; use `tracking.model.log_model`, which makes the arguments."""
        self._append(Call("model", arguments, folder))

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
        """Records a split of the data the run used; see `Run`."""
        dataset = {
            "name": name,
            "digest": digest,
            "source": redact(source),
            "context": context,
            "schema": dict(schema or {}),
            "profile": dict(profile or {}),
        }
        self._append(Call("datasets", {"datasets": [dataset]}))

    def flush(self) -> bool:
        """Flushes all records to the disk, as before a checkpoint; returns ``False`` if the disk fails."""
        try:
            self._writer.sync()
        except OSError as error:
            _log.warning("the records of run %s cannot be kept in %s: %s", self.name, folder(), error)
            return False
        return True

    def mark_pruned(self, reason: str) -> None:
        """Marks a run that a pruner stopped: it ends FINISHED, with a mark in front of its name."""
        self._pruned = True
        self.set_tags({STATE: "pruned", REASON: reason, _NOTE: f"**Pruned:** {reason}\n\n{self.description}".rstrip()})
        self._append(Call("rename", {"name": f"{PRUNED_MARK}{redact(self.name).removeprefix(PRUNED_MARK)}"}))

    def close(self, status: Status = "FINISHED") -> None:
        """Ends the run; a second call does nothing.

        A deferred run is on the disk afterwards: neither a kill nor a power cut can lose it. Any other run waits until
        MLflow has it. If the store is away, a run that is not nested has it tried once more, and then logs what
        `tlresearch sync` will deliver.

        Raises:
            TrackingError: If the journal cannot be written, or the store refused something.
        """
        if self.status != "RUNNING":
            return
        self.status = status
        _open_runs.discard(self)
        if self._system is not None:
            self._system.stop()
        try:
            self._append(end_call(status, self.manifest.files))
            with _disk_errors(self._label):
                self._writer.sync()
            delivered = self._courier is not None and self._await_delivery(self._courier)
        except BaseException:
            self._release(delivered=False)
            raise
        self._release(delivered=delivered)

    def _await_delivery(self, courier: CourierThread | CourierProcess) -> bool:
        """Waits until MLflow has the run, or the store is away; returns whether it has."""
        size = self._writer.journal.size

        def done(progress: Progress) -> bool:
            # A run that is not nested also waits for the runs nested in it, which have ended by now.
            return progress.offset >= size and (self._nested or not waiting(self._label))

        delivered = self._wait(courier, done) is not None
        self._update_ids()  # while the journal is there: it is removed next
        if not delivered and not self._nested:
            _log.warning("%s", describe_waiting(self._label))
        return delivered

    def _release(self, *, delivered: bool) -> None:
        if delivered:
            self._writer.remove()
        else:
            self._writer.release()
        if self._courier is not None:
            self._courier.close()

    def _wait(self, courier: CourierThread | CourierProcess, done: Callable[[Progress], bool]) -> Progress | None:
        """Waits for the courier.

        Args:
            courier: The courier of this process.
            done: Says of the courier's progress whether the wait is over.

        Returns:
            The courier's progress; ``None`` if the store is away. For a run that is not nested, an outage from before
            this call does not count: the store is tried once more.

        Raises:
            TrackingError: If the store refuses a call of the run.
        """
        began = time.time()
        if not self._nested:
            courier.hurry()
        while not done(progress := self._writer.journal.progress()):
            if progress.refused:
                raise TrackingError(progress.refused)
            courier.check()
            noted = outage(self._label)
            if noted is not None and (self._nested or noted.tried > began):
                return None
            time.sleep(_POLL)
        return progress

    def abandon(self) -> None:
        """Closes a run that was still open when the process ended."""
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
                # The error that ended the run matters more: report trouble with the store beside it, once.
                if error is None:
                    raise
                if str(trouble) != str(error):
                    _log.warning("%s", trouble)

    def _status_after(self, error: BaseException | None) -> Status:
        if error is None or (self._pruned and type(error).__name__ == "TrialPruned"):
            return "FINISHED"
        return "FAILED" if isinstance(error, Exception) else "KILLED"

    def _note_failure(self, error: BaseException | None) -> None:
        if self.status != "RUNNING" or self._status_after(error) == "FINISHED" or error is None:
            return
        try:
            self.set_tags({FAILURE: f"{type(error).__name__}: {first_line(error)}"})
            if isinstance(error, Exception):
                self.log_text("".join(traceback.format_exception(error)), "failure.txt")
        except TrackingError as trouble:
            if str(trouble) != str(error):
                _log.warning("the reason of the failure could not be recorded: %s", trouble)


@contextlib.contextmanager
def _disk_errors(label: str) -> Iterator[None]:
    """Turns an error of the disk into one line.

    Raises:
        TrackingError: If the journal cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise TrackingError(f"records for the MLflow store {label} cannot be kept in {folder()}: {error}") from None


class _SystemMetrics:
    """Measures processor, memory, disk and GPU in a thread until stopped, with pauses that grow.

    Args:
        run_id: The run that is measured.
        uri: Tracking URI of its store.
        log: Records metrics at a step.
        first_step: Step of the first measurement.
    """

    def __init__(self, run_id: str, uri: str, log: Callable[[Mapping[str, float], int], None], first_step: int) -> None:
        self._run_id, self._uri, self._log, self._step = run_id, uri, log, first_step
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tlresearch-system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops measuring; returns when the last measurement is recorded."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        try:
            # Only MLflow's sensors are used, not its thread: that writes point by point and reads the run before each.
            monitor: Any = SystemMetricsMonitor(self._run_id, tracking_uri=self._uri)  # type: ignore[no-untyped-call]
            pause = _FIRST_MEASUREMENT
            while not self._stop.wait(pause):
                monitor.collect_metrics()
                values = {f"system/{key}": float(value) for key, value in monitor.aggregate_metrics().items()}
                self._log(values, self._step)
                for sensor in monitor.monitors:
                    sensor.clear_metrics()
                self._step += 1
                pause = min(pause * 1.5, _LONGEST_PAUSE)
        except Exception as error:
            # A failing sensor must not end the training.
            _log.warning("system metrics stopped: %s: %s", type(error).__name__, error)
