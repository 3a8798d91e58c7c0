"""What a run records: params, metrics, tags, artifacts, data. Each becomes a call in the run's journal.

A metric's way to MLflow: `JournalRun.log_metrics` appends to the journal (`tracking.journal`), the courier of the store
ships it (`tracking.courier`), `tracking.calls` makes the request.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
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
from tlresearch.tracking.courier import CourierProcess, CourierThread, as_end, away, courier, told, waiting
from tlresearch.tracking.ending import OpenRuns, TerminationGuard
from tlresearch.tracking.journal import Progress, Writer, folder, journal_of
from tlresearch.tracking.manifest import Manifest
from tlresearch.tracking.provenance import VERSION
from tlresearch.tracking.store import Store, StoreAwayError, connect, resolve_uri
from tlresearch.tracking.system import SystemMetrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_log = logging.getLogger(__name__)

PRUNED_MARK = "✂ "  # in front of the name: the UI cuts long names at their end
_NOTE = "mlflow.note.content"
_LOOK = 0.01  # seconds between two looks at what the courier has done
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
        config: Where and how much is recorded.
        experiment: MLflow experiment, unless the config names one.
        name: Name of the run.
        params: Params; any length, secrets are hidden.
        tags: Tags, beside those of the config.
        description: Markdown shown on top of the run's page.
        parent: Run id of the run this one is nested in.
        run_id: Id or reference of the run to continue: it is RUNNING again, and points it holds already are not stored
            twice.
        deferred: Whether nobody waits for the store, neither at the start nor at the end, as for a trial of a sweep.

    A run of its own needs the store now. A nested run is opened also while the store is away.

    Raises:
        TrackingError: If the store cannot be reached, or does not hold `run_id`.
    """
    uri = resolve_uri(config.uri)
    ship = None
    if not deferred:
        connect(config.uri, check=parent is None)
        ship = courier(uri)
        ship.open()
    try:
        run = JournalRun(uri, name, run_id, nested=parent is not None, ship=ship)
    except BaseException:
        if ship is not None:
            ship.close()
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
        ship: The courier that is waited for, at the start and at the end; ``None`` if nobody waits for the store.

    Attributes:
        name: Its name; `description`: Markdown of its page.
        status: ``RUNNING``, or how it ended.
        manifest: Hashes of its artifacts.

    Raises:
        TrackingError: If another process writes the run, or the disk does not take what it records.
    """

    def __init__(
        self, uri: str, name: str, run_id: str | None, *, nested: bool, ship: CourierThread | CourierProcess | None
    ) -> None:
        left = journal_of(run_id) if run_id else None
        reference = left.reference if left else run_id or new_local_id()
        known = None if is_local(reference) else reference
        self._uri, self._label = uri, redact(uri)
        with _kept(self._label):
            self._writer = Writer(reference, store=self._label, name=name, run_id=known, continues=run_id is not None)
        self._run_id, self._experiment_id = known, ""
        self._nested, self._ship = nested, ship
        self.name = name
        self.description = ""
        self.status: Status | Literal["RUNNING"] = "RUNNING"
        self.manifest = Manifest()
        self._long_params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._system: SystemMetrics | None = None
        self._pruned = False
        self._signals = TerminationGuard()
        _open_runs.add(self)

    def begin(self, experiment: str, tags: Mapping[str, str], params: Mapping[str, object]) -> None:
        """Records what the run begins with, and waits until MLflow has it, unless it is deferred.

        Raises:
            TrackingError: If the store is away and this is a run of its own, or the store refuses it.
        """
        calls = []
        if self._writer.fresh and is_local(self.reference):
            now = int(time.time() * 1000)
            about = {"experiment": experiment, "name": redact(self.name), "tags": dict(tags), "time": now}
            calls.append(Call("create", about))
        if self._writer.journal.continues or not self._writer.fresh:
            calls.append(Call("reopen", {"tags": dict(tags)}))
        self._append(*calls)
        if self._ship is not None:
            try:
                self._await_begin(self._ship)
            except BaseException:
                self._give_up()
                raise
        self.log_params(params)

    def _await_begin(self, ship: CourierThread | CourierProcess) -> None:
        size = self._writer.journal.size
        progress = self._wait(ship, lambda now: now.offset >= size)
        if progress is None and not self._nested:
            reason = away(self._label)
            raise StoreAwayError(reason.reason if reason else f"MLflow store {self._label} is away")
        if progress is not None:
            self._tags = progress.tags

    def _give_up(self) -> None:
        """Leaves a run that could not be opened; one that goes on keeps what waits of it."""
        _open_runs.discard(self)
        self.status = "FAILED"
        if self._writer.fresh:
            self._writer.remove()
        else:
            self._writer.release()
        if self._ship is not None:
            self._ship.close()

    @property
    def store(self) -> Store:
        """Its store."""
        return connect(self._uri, check=False)

    @property
    def reference(self) -> str:
        """What `open_run` continues it by, known at once."""
        return self._writer.journal.reference

    @property
    def run_id(self) -> str:
        """Its id in MLflow; until that is known, its `reference`, which MLflow's run holds as a tag."""
        self._look()
        return self._run_id or self.reference

    @property
    def experiment_id(self) -> str:
        """The experiment it belongs to; empty until MLflow has the run."""
        self._look()
        return self._experiment_id

    @property
    def url(self) -> str:
        """Address of the run in the UI; empty until MLflow has it."""
        return run_url(self.store.ui, self.experiment_id, self.run_id) if self.experiment_id else ""

    def _look(self) -> None:
        """Takes over what the courier has come to know."""
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
        """Whether an earlier process has recorded what the run began with, its provenance last."""
        return VERSION in self._tags

    def start_system_metrics(self) -> None:
        """Measures processor, memory, disk and GPU until the run ends."""
        if self._system is None:
            first = self.last_step("system/cpu_utilization_percentage") + 1
            self._system = SystemMetrics(self.run_id, self._uri, self.log_metrics, first)

    def last_step(self, metric: str) -> int:
        """The largest step of a metric, stored or waiting; -1 if there is none."""
        key, journal = values.metric_key(metric), self._writer.journal
        steps = {point[3] for call, _ in journal.calls() for point in call.about.get("points", ()) if point[0] == key}
        if journal.continues and away(self._label) is None:
            target = journal.target()
            if target.run_id is not None:
                with self.store.errors():
                    steps |= stored_steps(self.store, target, key)
        return max(steps, default=-1)

    def _append(self, *calls: Call) -> None:
        with _kept(self._label):
            self._writer.append(*calls)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Stores params. One that is stored already keeps its value: MLflow does not let it change."""
        short, whole = values.params(params)
        self._append(Call("batch", {"params": short}))
        if whole:
            self._long_params.update(whole)
            self.log_dict(self._long_params, "config/long_params.json")

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Stores metrics, NaN and infinity too. Of two values for the same step the first one counts."""
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

    def log_model(self, about: Mapping[str, Any], folder: Path) -> None:
        """Stores a model; `tracking.model.log_model` says what of."""
        self._append(Call("model", about, folder))

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
        about = {"name": name, "digest": digest, "source": redact(source), "context": context}
        whole = {**about, "schema": dict(schema or {}), "profile": dict(profile or {})}
        self._append(Call("datasets", {"datasets": [whole]}))

    def flush(self) -> bool:
        """Has what was recorded on disk, next to a checkpoint; returns ``False`` if the disk fails."""
        try:
            self._writer.sync()
        except OSError as error:
            _log.warning("what run %s records cannot be kept in %s: %s", self.name, folder(), error)
            return False
        return True

    def mark_pruned(self, reason: str) -> None:
        """Marks a run that a pruner stopped: it ends FINISHED, with a mark in front of its name."""
        self._pruned = True
        self.set_tags({STATE: "pruned", REASON: reason, _NOTE: f"**Pruned:** {reason}\n\n{self.description}".rstrip()})
        self._append(Call("rename", {"name": f"{PRUNED_MARK}{redact(self.name).removeprefix(PRUNED_MARK)}"}))

    def close(self, status: Status = "FINISHED") -> None:
        """Ends the run; a second call does nothing.

        A deferred run is on disk then: no kill and no power cut can take it. Another one waits until MLflow has it. If
        the store is away, a run of its own tries once more and says what `tlresearch sync` is to deliver.

        Raises:
            TrackingError: If the disk does not take it, or the store refused something.
        """
        if self.status != "RUNNING":
            return
        self.status = status
        _open_runs.discard(self)
        if self._system is not None:
            self._system.stop()
        try:
            self._append(as_end(status, self.manifest.files))
            with _kept(self._label):
                self._writer.sync()
            delivered = self._ship is not None and self._deliver(self._ship)
        except BaseException:
            self._let_go(delivered=False)
            raise
        self._let_go(delivered=delivered)

    def _deliver(self, ship: CourierThread | CourierProcess) -> bool:
        """Waits until MLflow has the run, or the store is away; returns whether it has."""
        size = self._writer.journal.size

        def done(progress: Progress) -> bool:
            # A run of its own also waits for the runs nested in it, which have ended by now.
            return progress.offset >= size and (self._nested or not waiting(self._label))

        delivered = self._wait(ship, done) is not None
        self._look()
        if not delivered and not self._nested:
            _log.warning("%s", told(self._label))
        return delivered

    def _let_go(self, *, delivered: bool) -> None:
        if delivered:
            self._writer.remove()
        else:
            self._writer.release()
        if self._ship is not None:
            self._ship.close()

    def _wait(self, ship: CourierThread | CourierProcess, until: Callable[[Progress], bool]) -> Progress | None:
        """Waits for the courier.

        Args:
            ship: The courier of this process.
            until: What is waited for.

        Returns:
            How far the courier has come; ``None`` if the store is away. A run of its own has it tried once more.

        Raises:
            TrackingError: If the store refuses what the run records.
        """
        began = time.time()
        if not self._nested:
            ship.hurry()
        while not until(progress := self._writer.journal.progress()):
            if progress.refused:
                raise TrackingError(progress.refused)
            ship.check()
            gone = away(self._label)
            if gone is not None and (self._nested or gone.tried > began):
                return None
            time.sleep(_LOOK)
        return progress

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
def _kept(label: str) -> Iterator[None]:
    """Says in one line that the disk does not take what is recorded.

    Raises:
        TrackingError: If it does not.
    """
    try:
        yield
    except OSError as error:
        raise TrackingError(
            f"what is recorded for the MLflow store {label} cannot be kept in {folder()}: {error}"
        ) from None
