"""Ends of a process that must not leave a run RUNNING: termination signals and forgotten runs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

_EXIT_CODE = 128 + signal.SIGTERM


class Closable(Protocol):
    """A run that can be closed when its process ends."""

    def abandon(self) -> None:
        """Closes the run as failed."""
        ...


class TerminationGuard:
    """Turns SIGTERM (a scheduler, `kill`, `docker stop`) into `SystemExit` while a run is open.

    Only where nobody else handles it: Lightning does during its fit, an outer run does for nested ones.
    """

    def __init__(self) -> None:
        self._installed = False
        self._deferring = False
        self._came = False

    def install(self) -> None:
        """Handles SIGTERM from now on, if this is the main thread and nobody else does."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._handle)
            self._installed = True

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Holds a signal back while a run is being closed, then hands the signal back to the system."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            if self._installed:
                self._installed = False
                if signal.getsignal(signal.SIGTERM) == self._handle:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                if self._came:
                    raise SystemExit(_EXIT_CODE)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._deferring:
            self._came = True
        else:
            raise SystemExit(_EXIT_CODE)


class OpenRuns:
    """The runs of this process that are not closed yet."""

    def __init__(self) -> None:
        import atexit

        self._runs: weakref.WeakSet[Closable] = weakref.WeakSet()
        self._process = os.getpid()
        atexit.register(self._close_all)

    def add(self, run: Closable) -> None:
        """Remembers a run until it is discarded."""
        self._runs.add(run)

    def discard(self, run: Closable) -> None:
        """Forgets a run that is closed."""
        self._runs.discard(run)

    def _close_all(self) -> None:
        # A forked process shares the runs of its parent, which are not its to close.
        if os.getpid() == self._process:
            for run in list(self._runs):
                run.abandon()
