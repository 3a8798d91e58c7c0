"""One process writes a run at a time: who continues it waits until the one before has written its last."""

from __future__ import annotations

import fcntl
import logging
import os
import time
import weakref
from pathlib import Path

from tlresearch.base.paths import home

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds; what a killed training left in the socket is written long before


class Ownership:
    """Holds a run from its start to its end; the system lets go of it when the process dies.

    A training that is killed leaves what it has said to the process that writes it (`tracking.remote`). Without this,
    the end of the killed try could be written after the next one has begun.

    Args:
        run_id: The run.
        patience: Seconds to wait for whoever holds it.
    """

    def __init__(self, run_id: str, patience: float = PATIENCE) -> None:
        self._path = home() / "writing" / f"{run_id}.lock"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + patience
        file = _take(self._path)
        while file is None and time.monotonic() < deadline:
            time.sleep(0.05)
            file = _take(self._path)
        self.held = file is not None
        if file is None:
            if patience:
                log.warning("run %s is still being written by another process; going on", run_id)
            return
        self._close = weakref.finalize(self, os.close, file)  # also for a run that is dropped without an end

    @classmethod
    def free(cls, run_id: str) -> Ownership | None:
        """Holds a run that nobody holds; ``None`` if somebody does."""
        owner = cls(run_id, patience=0)
        return owner if owner.held else None

    def drop(self) -> None:
        """Lets the run go before its end has been written: the lock stays, and says so."""
        if self.held:
            self._close()

    def release(self) -> None:
        """Lets the run go; its end has been written."""
        if self.held and self._close.alive:
            self._path.unlink(missing_ok=True)
            self._close()


def _take(path: Path) -> int | None:
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file).st_ino == os.stat(path).st_ino:
            return file  # and not of a lock that its holder has removed meanwhile
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(file)
    return None
