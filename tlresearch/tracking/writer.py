"""Metrics on the way to MLflow: taken at once, written in batches, never twice, never lost silently."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tlresearch.config.paths import home
from tlresearch.errors import TrackingError
from tlresearch.tracking.store import Store, one_line
from tlresearch.tracking.values import metric_key

_log = logging.getLogger(__name__)

_BATCH = 1000  # MLflow's limit per request
_INTERVAL = 2.0  # seconds between two writes; one write costs about as much as a single point
_LONGEST_PAUSE = 60.0


class Point(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    timestamp: int
    step: int


class MetricWriter:
    """Writes the metrics of one run.

    Args:
        store: Where to write.
        run_id: The run.
        resumed: Whether the run may hold points already; the same name and step is not stored twice.
    """

    def __init__(self, store: Store, run_id: str, *, resumed: bool) -> None:
        self._store = store
        self._run_id = run_id
        self._resumed = resumed
        self._stored: dict[str, set[int]] = {}
        self._pending: list[Point] = list(self._unsent()) if resumed else []
        self._wake = threading.Condition()
        self._sending = threading.Lock()
        self._stop = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes one value per metric; returns at once."""
        now = int(time.time() * 1000)
        points = [Point(metric_key(key), float(value), now, int(step)) for key, value in metrics.items()]
        with self._wake:
            self._pending += points
            if self._thread is None and not self._stop:
                self._thread = threading.Thread(target=self._work, name="tlresearch-metrics", daemon=True)
                self._thread.start()
            if len(self._pending) >= _BATCH:
                self._wake.notify()

    def last_step(self, metric: str) -> int:
        """The largest step of a metric, stored or waiting; -1 if there is none."""
        key = metric_key(metric)
        with self._wake:
            waiting = [point.step for point in self._pending if point.key == key]
        with self._sending, self._store.errors():
            stored = self._steps(key)
        return max([*waiting, *stored], default=-1)

    def flush(self) -> bool:
        """Writes what waits, now; returns whether the store took it. What it did not take is retried."""
        self._send()
        return self._error is None

    def close(self) -> None:
        """Writes what waits and ends the thread.

        Raises:
            TrackingError: If the store is gone: the points are then in a file that continuing the run reads.
        """
        with self._wake:
            self._stop = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        if not self.flush():
            path = self._spool()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self._pending))
            raise TrackingError(
                f"MLflow store {self._store.label}: {len(self._pending)} metric values of run {self._run_id} "
                f"could not be written ({one_line(self._error or RuntimeError())}); they are kept in {path} "
                "and are written when the run is continued"
            )
        self._spool().unlink(missing_ok=True)

    def _work(self) -> None:
        pause = _INTERVAL
        while True:
            with self._wake:
                # A full batch is written at once, unless the store is away.
                self._wake.wait_for(self._full if self._error is None else self._stopping, pause)
                if self._stopping():
                    return
            self._send()
            pause = _INTERVAL if self._error is None else min(pause * 2, _LONGEST_PAUSE)

    def _stopping(self) -> bool:
        return self._stop

    def _full(self) -> bool:
        return self._stop or len(self._pending) >= _BATCH

    def _send(self) -> None:
        with self._sending:
            with self._wake:
                points = list(self._pending)
            try:
                for start in range(0, len(points), _BATCH):
                    batch = points[start : start + _BATCH]
                    self._send_batch(batch)
                    with self._wake:
                        del self._pending[: len(batch)]
            except Exception as error:
                # A thread must not die of anything: the points stay, and `close` says what is wrong.
                if self._error is None:
                    _log.warning("metrics wait for the MLflow store %s: %s", self._store.label, one_line(error))
                self._error = error
            else:
                if self._error is not None:
                    _log.warning("the MLflow store %s is back; waiting metrics were written", self._store.label)
                self._error = None

    def _send_batch(self, points: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        fresh = {(p.key, p.step): p for p in reversed(list(points)) if p.step not in self._steps(p.key)}
        # Reversed twice: of two values for the same step the first counts, as it does across batches.
        metrics = [Metric(p.key, p.value, p.timestamp, p.step) for p in reversed(fresh.values())]
        if metrics:
            self._store.client.log_batch(self._run_id, metrics=metrics, synchronous=True)
        for key, step in fresh:
            self._stored[key].add(step)

    def _steps(self, key: str) -> set[int]:
        if key not in self._stored:
            history = self._store.client.get_metric_history(self._run_id, key) if self._resumed else []
            self._stored[key] = {metric.step for metric in history}
        return self._stored[key]

    def _spool(self) -> Path:
        return home() / "unsent" / f"{self._run_id}.json"

    def _unsent(self) -> Iterable[Point]:
        path = self._spool()
        return [Point(*row) for row in json.loads(path.read_text())] if path.is_file() else []
