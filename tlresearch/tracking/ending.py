"""Ends the runs of a process that is terminated or exits, so that none stays RUNNING."""

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

    Only if nothing else handles the signal: Lightning does during its fit, and an outer run does for nested runs.
    """

    def __init__(self) -> None:
        self._installed = False
        self._deferring = False
        self._received = False  # whether SIGTERM came while the run was being closed

    def install(self) -> None:
        """Handles SIGTERM from now on, if this is the main thread and nothing else handles it."""
        # Python sets signal handlers only in the main thread.
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._handle)
            self._installed = True

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Postpones SIGTERM while a run is being closed, then restores the default handler."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
            if self._installed:
                self._installed = False
                if signal.getsignal(signal.SIGTERM) == self._handle:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                if self._received:
                    raise SystemExit(_EXIT_CODE)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._deferring:
            self._received = True
        else:
            raise SystemExit(_EXIT_CODE)


class OpenRuns:
    """The open runs of this process. Those that are still open when the process exits are closed as failed."""

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
        # A forked process inherits the list of its parent's open runs, but the parent still writes them.
        if os.getpid() == self._process:
            for run in list(self._runs):
                run.abandon()
