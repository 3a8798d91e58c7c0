"""System metrics of a run (processor, memory, disk, GPU): MLflow's sensors, recorded like the run's other metrics."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0  # seconds, so that short runs get a few points too
_LONGEST_PAUSE = 15.0


class SystemMetrics:
    """Measures in a thread until stopped, with pauses that grow.

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
            pause = _FIRST_PAUSE
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
