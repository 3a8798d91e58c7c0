"""One run in MLflow from start to end: the only writer of params, metrics, tags and artifacts."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Literal, Self

from tlresearch.base.errors import TrackingError
from tlresearch.base.redact import redact
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking import values
from tlresearch.tracking.addresses import run_url
from tlresearch.tracking.calls import FAILURE, REASON, STATE, Call, Target, new_local_id, resolve
from tlresearch.tracking.courier import courier
from tlresearch.tracking.ending import OpenRuns, TerminationGuard
from tlresearch.tracking.journal import Journal
from tlresearch.tracking.left import end_left
from tlresearch.tracking.outbox import Outbox, as_end
from tlresearch.tracking.owner import Ownership
from tlresearch.tracking.pending import deliver_left, told
from tlresearch.tracking.provenance import VERSION
from tlresearch.tracking.recording import Recording
from tlresearch.tracking.store import Store, StoreAwayError, connect, one_line
from tlresearch.tracking.system import SystemMetrics

_log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED", "SCHEDULED"]

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
    local_id: str | None = None,
    began: float | None = None,
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
        local_id: Id by which a new run can be continued before MLflow has given it one; ``None`` makes one.
        began: When it began, in seconds since 1970; ``None`` is now.

    A run of its own needs the store now, and first delivers what earlier runs could not. A nested run is opened also
    while the store is away: it has a local id then, and gets MLflow's when it is delivered.

    Raises:
        TrackingError: If the store cannot be reached, or does not hold `run_id`.
    """
    nested = parent is not None
    store = connect(config.uri, check=not nested)
    if not nested:
        deliver_left(store)
        end_left(store)
    tags = {**config.tags, **tags}
    if parent:
        tags["mlflow.parentRunId"] = parent
    if description:
        tags[_NOTE] = description
    cleaned = values.tags(tags)
    create = Call(
        "create",
        {
            "experiment": config.experiment or experiment,
            "name": redact(name),
            "tags": cleaned,
            "time": int((began or time.time()) * 1000),
        },
    )
    run = _continue(store, run_id, name, create, nested=nested) if run_id else None
    if run is None:
        run = _begin(store, run_id or local_id or new_local_id(), name, create, nested=nested)
    run.description = description
    run.log_params(params)
    if config.system_metrics:
        run.start_system_metrics()
    return run


def _begin(store: Store, local_id: str, name: str, create: Call, *, nested: bool) -> TrackedRun:
    made = Ownership(local_id)  # a kill before the run is owned by its id leaves this behind: see `left`
    run = TrackedRun(Outbox(store, Target(local_id, None), name), store, name, nested=nested)
    run.outbox.do(create, patient=nested)
    if run.run_id == local_id:
        run.hold(made)
    else:
        run.hold()
        made.release()
    return run


def _continue(store: Store, run_id: str, name: str, create: Call, *, nested: bool) -> TrackedRun | None:
    """Goes on with a run; ``None`` if it was never opened, since its process was killed before."""
    owner = Ownership(run_id)
    journal = Journal.left(run_id)
    target = Target(run_id, run_id, resumed=True, params=None)
    if journal is None:
        try:
            with store.errors():
                found = resolve(store, run_id)
        except StoreAwayError:  # which is asked for one of our ids only
            if not nested:
                raise
            target.run_id = None
        else:
            if found is None:
                owner.release()
                return None
            if found != run_id:
                owner.release()
                owner = Ownership(found)
                journal = Journal.left(found)
                target.local_id = target.run_id = found
    run = TrackedRun(Outbox(store, target, name, journal), store, name, nested=nested)
    run.hold(owner)
    if run.outbox.target.run_id is None and journal is None:
        run.outbox.do(create)  # which finds the run that there is, when the store is back
    run.outbox.do(Call("reopen", {"tags": create.about["tags"]}), patient=nested or journal is not None)
    return run


class TrackedRun(Recording):
    """A run in MLflow. As a context manager it ends with the status that is true: see `__exit__`.

    Args:
        outbox: What writes it.
        store: Where it is written.
        name: Its name.
        nested: Whether it belongs to another run, which waits for the store at its end.

    Attributes:
        name: Its name; `description`: Markdown of its page.
        status: ``RUNNING``, or how it ended.
    """

    def __init__(self, outbox: Outbox, store: Store, name: str, *, nested: bool = False) -> None:
        super().__init__(outbox, store)
        self.name = name
        self.nested = nested
        self.description = ""
        self.status: Status | Literal["RUNNING"] = "RUNNING"
        self._system: SystemMetrics | None = None
        self._pruned = False
        self._signals = TerminationGuard()

    def hold(self, owner: Ownership | None = None) -> None:
        """Owns the run from now on: it exists, or waits to be made."""
        self.outbox.hold(owner or Ownership(self.run_id))
        _open_runs.add(self)

    @property
    def begun(self) -> bool:
        """Whether an earlier process has recorded what the run began with, its provenance last."""
        return VERSION in self.outbox.target.tags

    @property
    def url(self) -> str:
        """Address of the run in the UI."""
        return run_url(self.store.ui, self.experiment_id, self.run_id)

    def start_system_metrics(self) -> None:
        """Measures processor, memory, disk and GPU until the run ends."""
        if self._system is None:
            first = self.last_step("system/cpu_utilization_percentage") + 1
            self._system = SystemMetrics(self.run_id, self.store.uri, self.log_metrics, first)

    def mark_pruned(self, reason: str) -> None:
        """Marks a run that a pruner stopped: it ends FINISHED, with a mark in front of its name."""
        self._pruned = True
        self.set_tags({STATE: "pruned", REASON: reason, _NOTE: f"**Pruned:** {reason}\n\n{self.description}".rstrip()})
        self.outbox.do(Call("rename", {"name": f"{PRUNED_MARK}{redact(self.name).removeprefix(PRUNED_MARK)}"}))

    def begin_close(self, status: Status = "FINISHED") -> None:
        """Begins what `close` will wait for, where another process does it; here `close` does all of it."""

    def close(self, status: Status = "FINISHED") -> None:
        """Writes what waits and ends the run; a second call does nothing.

        If the store is away, a run of its own tries once more and says what `tlresearch sync` is to deliver.

        Raises:
            TrackingError: If the store refused something.
        """
        if self._end(status):
            try:
                self.outbox.close([*self.last, as_end(status, self.manifest.files)])
            finally:
                self._tell_what_waits()

    def close_by_disk(self, status: Status, tags: Mapping[str, str]) -> Callable[[], None]:
        """Sets tags and ends the run as `close` does, by way of the disk: no kill can lose any of it when this returns.

        Args:
            status: How it ended.
            tags: The last tags.

        Returns:
            What brings it to the store, to be called once; it raises a `TrackingError` if the store refuses something,
            which stays on disk then.

        Raises:
            TrackingError: If the disk does not take it, and the store refuses something.
        """
        if not self._end(status):
            return lambda: None
        last = [Call("batch", {"tags": values.tags(tags)})] if tags else []
        deliver = self.outbox.close_by_disk([*self.last, *last, as_end(status, self.manifest.files)])

        def rest() -> None:
            try:
                deliver()
            finally:
                self._tell_what_waits()

        return rest

    def _end(self, status: Status) -> bool:
        if self.status != "RUNNING":
            return False
        self.status = status
        _open_runs.discard(self)
        if self._system is not None:
            self._system.stop()
        return True

    def _tell_what_waits(self) -> None:
        if not self.nested and (not courier(self.store).finish() or self.outbox.waiting):
            _log.warning("%s", told(self.store))

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
            self.set_tags({FAILURE: f"{type(error).__name__}: {one_line(error)}"})
            if isinstance(error, Exception):
                self.log_text("".join(traceback.format_exception(error)), "failure.txt")
        except TrackingError as trouble:
            if str(trouble) != str(error):
                _log.warning("the reason of the failure could not be recorded: %s", trouble)
