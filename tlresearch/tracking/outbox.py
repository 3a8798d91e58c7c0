"""What one run records on its way to MLflow: taken at once, written in order, kept on disk while the store is away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tlresearch.base.errors import TrackingError
from tlresearch.tracking.calls import POINTS, Call, Target, perform, stored_steps
from tlresearch.tracking.courier import courier
from tlresearch.tracking.gathering import gathered
from tlresearch.tracking.journal import Journal, folder
from tlresearch.tracking.owner import Ownership
from tlresearch.tracking.store import Store, StoreAwayError
from tlresearch.tracking.values import metric_key

_log = logging.getLogger(__name__)

_INTERVAL = 2.0  # seconds between two writes; one write costs about as much as a single point
_PATIENCE = 5.0  # seconds that a checkpoint waits for the store before its metrics go to disk instead

Point = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""


class Outbox:
    """Writes one run. Calls are made at once; metrics by a thread, in batches.

    While the store is away, everything goes to a journal on disk, and the courier delivers it in order.

    Args:
        store: Where to write.
        target: The run.
        name: Its name, for whoever reads of what waits.
        journal: What an earlier process has left of it.
    """

    def __init__(self, store: Store, target: Target, name: str, journal: Journal | None = None) -> None:
        self.target = journal.target if journal else target
        self._store, self._name = store, name
        self._courier = courier(store)
        self._journal = journal
        self._kept_back: list[Call] | None = None
        self._gate = threading.Lock()  # of the journal
        self._pending: list[Point] = []
        self._spilled = 0  # how often what was pending went to the journal
        self._wake = threading.Condition()
        self._sending = threading.Lock()
        self._urgent = self._stop = False
        self._refused: TrackingError | None = None
        self._complained = self._closed = False
        self._owner: Ownership | None = None
        self._thread: threading.Thread | None = None
        if journal is not None:
            self._courier.take(self)

    def hold(self, owner: Ownership) -> None:
        """Owns the run until its end has been written."""
        self._owner = owner

    @property
    def waiting(self) -> bool:
        """Whether something of this run is on disk instead of in the store."""
        return self._journal is not None

    def do(self, call: Call, *, patient: bool = True) -> None:
        """Makes a call, or keeps it if the store is away.

        Args:
            call: The call.
            patient: Whether it may be kept.

        Raises:
            TrackingError: If the store refuses it.
            StoreAwayError: If the store is away and the call must not wait.
        """
        if self._kept_back is not None and patient:
            self._kept_back.append(call)
            return
        if patient and (self.waiting or self._courier.away):
            self._keep(call)
            return
        try:
            perform(self._store, self.target, call)
        except StoreAwayError as error:
            if not patient:
                raise
            self._keep(call, str(error))

    def keep_back(self) -> None:
        """Has what comes from now on wait in memory, until `let_go` makes it or `close_by_disk` puts it on disk."""
        if self._kept_back is None:
            self._kept_back = []

    def let_go(self) -> None:
        """Makes what was kept back, in as few requests as it takes; what comes from now on is made at once.

        Raises:
            TrackingError: If the store refuses any of it.
        """
        kept, self._kept_back = self._kept_back or [], None
        for call, _ in gathered(kept):
            self.do(call)

    def _keep(self, call: Call, reason: str = "") -> None:
        try:
            self._put_on_disk(call)
        except OSError as error:
            away = reason or f"MLflow store {self._store.label} is away"
            raise TrackingError(f"{away}, and what is recorded cannot be kept in {folder()} either: {error}") from None
        self._courier.take(self, reason)

    def _put_on_disk(self, *calls: Call) -> None:
        with self._gate:
            journal = self._journal or Journal.begin(self._store, self.target, self._name)
            journal.append(*calls)
            self._journal = journal

    def deliver(self) -> bool:
        """Delivers what is on disk; the courier calls it.

        Raises:
            StoreAwayError: If the store is still away.
        """
        try:
            self._deliver()
        except StoreAwayError:
            raise
        except TrackingError as error:
            if not self._complained:
                _log.warning("run %s: %s; what it recorded since is kept in %s", self._name, error, folder())
            self._complained = True
        return True

    def _deliver(self) -> None:
        while (journal := self._journal) is not None:
            journal.deliver(self._store)
            with self._gate:
                if not journal.waiting(1):
                    self._store.settle()
                    journal.remove()
                    self._journal = None
                    self._release()

    def _release(self) -> None:
        if self._closed and self._owner is not None and not self.waiting:
            self._owner.release()

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes one value per metric; returns at once."""
        now = int(time.time() * 1000)
        points = [(metric_key(key), float(value), now, int(step)) for key, value in metrics.items()]
        with self._wake:
            self._pending += points
            if self._thread is None and not self._stop:
                self._thread = threading.Thread(target=self._work, name="tlresearch-metrics", daemon=True)
                self._thread.start()
            if len(self._pending) >= POINTS:
                self._wake.notify_all()

    def last_step(self, metric: str) -> int:
        """The largest step of a metric, stored or waiting; -1 if there is none."""
        key = metric_key(metric)
        with self._wake:
            known = {point[3] for point in self._pending if point[0] == key}
        with self._gate:
            kept = self._journal.waiting() if self._journal else []
        known |= {point[3] for call in kept for point in call.about.get("points", ()) if point[0] == key}
        if self.target.run_id is not None and not self.waiting:
            try:
                with self._sending, self._store.errors():
                    known |= stored_steps(self._store, self.target, key)
            except StoreAwayError as error:
                _log.debug("%s", error)
        return max(known, default=-1)

    def flush(self) -> bool:
        """Has what waits on disk now, in the store or in the journal; returns whether it is."""
        in_time = False
        with self._wake:
            if self._thread is not None:
                self._urgent = True
                self._wake.notify_all()
                in_time = self._wake.wait_for(lambda: not self._pending or self._refused is not None, _PATIENCE)
        if not in_time:
            self._spill(f"MLflow store {self._store.label} is slow to answer")
        self._store.settle()
        return self._refused is None

    def close(self, last: Sequence[Call]) -> None:
        """Writes what waits, then the end of the run, and ends the thread.

        Args:
            last: The last calls, the run's end behind the others.

        Raises:
            TrackingError: If the store refused something.
        """
        self._end_thread()
        try:
            self._send()
            for call in last:
                self.do(call)
            self._store.settle()
            if self._refused is not None:
                raise self._refused
        finally:
            self._release_at_end()

    def close_by_disk(self, last: Sequence[Call]) -> Callable[[], None]:
        """Closes by way of the disk: when this returns, a millisecond later, no kill can lose any of it.

        Args:
            last: The last calls, the run's end behind the others.

        Returns:
            What brings it from the disk to the store; to be called once, at leisure.

        Raises:
            TrackingError: If the disk does not take it, and the store refuses something.
        """
        self._end_thread()
        first, self._kept_back = self._kept_back or [], None
        try:
            self._put_on_disk(*first, *([_metrics(self._pending)] if self._pending else []), *last)
        except OSError:  # full: the store may have room
            self.close([*first, *last])
            return lambda: None
        return self._deliver_end

    def _deliver_end(self) -> None:
        try:
            if self._courier.away:
                self._courier.take(self)
            else:
                self._deliver()
        except StoreAwayError as error:
            self._courier.take(self, str(error))
        finally:
            self._release_at_end()

    def _end_thread(self) -> None:
        with self._wake:
            self._stop = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _release_at_end(self) -> None:
        with self._gate:
            self._closed = True
            self._release()

    def _work(self) -> None:
        while not self._stop:
            with self._wake:
                self._wake.wait_for(lambda: self._stop or self._urgent or len(self._pending) >= POINTS, _INTERVAL)
                self._urgent = False
            if not self._stop:
                self._send()

    def _send(self) -> None:
        with self._sending:
            with self._wake:
                points, spilled = list(self._pending), self._spilled
            if points:
                try:
                    if self.waiting or self._courier.away:
                        self._spill()
                    else:
                        perform(self._store, self.target, _metrics(points))
                except StoreAwayError as error:
                    self._spill(str(error))
                except TrackingError as error:
                    self._refuse(error)
                else:
                    with self._wake:
                        self._refused = None
                        if spilled == self._spilled:
                            del self._pending[: len(points)]
            with self._wake:
                self._wake.notify_all()

    def _spill(self, reason: str = "") -> None:
        """Moves the metrics that wait in memory to disk; those on their way just now are stored once all the same."""
        with self._wake:
            try:
                if self._pending:
                    self._keep(_metrics(self._pending), reason)
                self._pending = []
                self._spilled += 1
            except TrackingError as error:
                self._refuse(error)
            self._wake.notify_all()

    def _refuse(self, error: TrackingError) -> None:
        if self._refused is None:  # whoever closes the run is told
            _log.warning("metrics of run %s wait in memory only: %s", self._name, error)
        self._refused = error


def _metrics(points: list[Point]) -> Call:
    return Call("batch", {"points": [list(point) for point in points]})


def as_end(status: str, files: Mapping[str, str]) -> Call:
    """The last call of a run: its status, now, with the hashes of its files."""
    about: dict[str, Any] = {"status": status, "files": dict(files), "time": int(time.time() * 1000)}
    return Call("end", about)
