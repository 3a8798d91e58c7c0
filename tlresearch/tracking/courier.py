"""Brings what waits to a store that is away: one thread per store, as soon as it is back."""

from __future__ import annotations

import logging
import os
import threading
from typing import Protocol

from tlresearch.tracking.journal import folder
from tlresearch.tracking.store import Store, StoreAwayError

_log = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0  # seconds
_LONGEST_PAUSE = 20.0
_couriers: dict[tuple[int, str], Courier] = {}


class Sender(Protocol):
    """A run that has something waiting."""

    def deliver(self) -> bool:
        """Delivers what waits; returns whether nothing is left that could be delivered."""
        ...


class Courier:
    """Delivers for all runs of this process that write to one store.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._senders: list[Sender] = []
        self._thread: threading.Thread | None = None
        self._hurry = False
        self._attempts = self._failed = 0  # how many attempts have begun; the number of the last one that failed

    @property
    def away(self) -> bool:
        """Whether the store is away, or something still waits in front of what comes now."""
        return self._thread is not None

    def take(self, sender: Sender, reason: str = "") -> None:
        """Delivers for a run as soon as that is possible.

        Args:
            sender: The run; more than once does no harm.
            reason: Why it could not be delivered at once.
        """
        with self._changed:
            if sender not in self._senders:
                self._senders.append(sender)
            if self._thread is None:
                if reason:
                    _log.warning(
                        "%s; the training goes on, and what it records waits in %s until the store is back",
                        reason,
                        folder(),
                    )
                self._thread = threading.Thread(target=self._work, name="tlresearch-courier", daemon=True)
                self._thread.start()

    def finish(self) -> bool:
        """Tries once more, now; returns whether nothing waits any more."""
        with self._changed:
            begun = self._attempts  # one that is under way may fail although the store is back
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._thread is None or self._failed > begun)
            return self._thread is None

    def _work(self) -> None:
        pause, failed = _FIRST_PAUSE, False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._hurry, pause)
                self._hurry = False
                self._attempts += 1
                senders = list(self._senders)
            try:
                # In the order in which they began: a run's parent is made before the run.
                done = [sender for sender in senders if sender.deliver()]
            except StoreAwayError:
                failed = True
                with self._changed:
                    self._failed = self._attempts
                    self._changed.notify_all()
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            except Exception as error:
                # A thread must not die of anything: what waits is on disk, and `sync` says what is wrong with it.
                _log.warning("what waits could not be delivered: %s: %s", type(error).__name__, error)
                done = senders
            pause = 0.0
            with self._changed:
                self._senders = [sender for sender in self._senders if sender not in done]
                if not self._senders:
                    if failed:
                        _log.warning("the MLflow store %s is back: what waited was delivered", self._store.label)
                    self._thread = None
                    self._changed.notify_all()
                    return


def courier(store: Store) -> Courier:
    """The courier of this process for a store."""
    return _couriers.setdefault((os.getpid(), store.uri), Courier(store))


def finish_all() -> None:
    """Tries once more to deliver everything that waits in this process."""
    for (process, _), one in list(_couriers.items()):
        if process == os.getpid():
            one.finish()
