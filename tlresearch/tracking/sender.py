"""Messages to the process that writes to MLflow, sent by a thread, many at once."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

PACE = 1.0  # seconds between two batches of messages that nobody waits for

Message = tuple[int, str, tuple[Any, ...], dict[str, Any], bool]
"""Number of the run, method, arguments, keyword arguments, and whether an answer is wanted."""


class Sender:
    """Sends messages in order: those that are urgent now, with all in front of them, and the others some time soon.

    A slow store fills the socket: the thread waits for it instead of the training. And no Ctrl-C halves a message.

    Args:
        connection: Where to.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[Message] = deque()
        self._told, self._urgent, self._ended = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="tlresearch-outbox", daemon=True)
        self._thread.start()

    def put(self, message: Message, *, urgent: bool = False) -> None:
        """Takes a message; returns at once."""
        self._waiting.append(message)
        if urgent:
            self._urgent.set()
        self._told.set()

    def finish(self) -> None:
        """Sends what waits, and ends the thread."""
        self._ended = True
        self._urgent.set()
        self._told.set()
        self._thread.join()

    def _work(self) -> None:
        # Not one by one: each time another thread wants Python's lock, a step of a small head is late by a fiftieth.
        while not self._ended or self._waiting:
            self._told.wait()
            self._told.clear()
            self._urgent.clear()
            messages = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if messages:
                with contextlib.suppress(OSError):  # it has died; whoever waits for an answer is told
                    self._connection.send(messages)
            if not self._ended:
                self._urgent.wait(PACE)
