"""One process writes a run at a time: who continues it waits until the one before has written its last."""

from __future__ import annotations

import fcntl
import logging
import os
import time
import weakref

from tlresearch.config.paths import home

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds; what a killed training left in the socket is written long before


class Ownership:
    """Holds a run from its start to its end; the system lets go of it when the process dies.

    A training that is killed leaves what it has said to the process that writes it (`tracking.remote`). Without this,
    the end of the killed try could be written after the next one has begun.

    Args:
        run_id: The run.
    """

    def __init__(self, run_id: str) -> None:
        self._path = home() / "writing" / f"{run_id}.lock"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_CREAT | os.O_RDWR)
        self._close = weakref.finalize(self, os.close, file)  # also for a run that is dropped without an end
        deadline = time.monotonic() + PATIENCE
        while not _take(file):
            if time.monotonic() > deadline:
                log.warning("run %s is still being written by another process; going on", run_id)
                return
            time.sleep(0.05)

    def release(self) -> None:
        """Lets the run go; its end has been written."""
        if self._close.alive:
            self._path.unlink(missing_ok=True)
            self._close()


def _take(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
