"""The process that writes runs to MLflow for a `RemoteTracker`: calls come in order through a socket."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from tlresearch.base.errors import UserError
from tlresearch.base.redact import protect_output
from tlresearch.tracking.courier import finish_all
from tlresearch.tracking.database import sync_files_late
from tlresearch.tracking.remote import Opened
from tlresearch.tracking.run import TrackedRun, open_run
from tlresearch.tracking.sender import Message

QUIET = 0.5  # seconds without a message after which nobody is taken to be in a hurry
GATHERING = 1.0  # seconds for which a run's calls are gathered; of one that has ended by then all are made together


class Desk:
    """Does what comes through a socket: what somebody waits for at once, the rest while the network is trained.

    What is done here while a trial is set up has that take a third longer, since both want the same caches. Beside the
    training of a small head it costs a few percent. So a run is opened when its first metrics say that it is trained,
    or somebody asks for its id. A short trial is written when it has ended, in a few requests.

    Args:
        connection: The socket.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._runs: dict[int, TrackedRun] = {}
        self._failed: set[int] = set()
        self._received: deque[Message] = deque()
        self._later: deque[tuple[int, Callable[[], object]]] = deque()
        self._gathering: dict[int, float] = {}  # runs whose calls are kept back, and until when
        self._training = False  # the run that was opened last has given metrics

    def take(self, number: int, method: str, arguments: tuple[Any, ...], named: dict[str, Any], wanted: bool) -> None:
        """Takes a message."""
        if method == "warm":
            _load_mlflow()
        elif method == "open":
            self._training = False
            self._later.append((number, partial(self._open, number, arguments, named)))
        elif method == "close":
            self._training = False
            self._have_opened(number)
            self._try(number, partial(self._close, number, arguments))
        elif method == "opened":
            self._have_opened(number)
        elif wanted:
            self.catch_up(number)
            self._try(number, partial(self._answer, number, method, arguments, named))
        elif method == "log_metrics":  # which have a thread of their own
            self._training = True
            self._have_opened(number)
            self._try(number, partial(self._call, number, method, arguments, named))
        else:
            self._later.append((number, partial(self._call, number, method, arguments, named)))

    def catch_up(self, number: int) -> None:
        """Does what was put off of a run, and has all of it written."""
        self._do_all_of(number)
        self._let_go(number)

    def next(self) -> Message | None:
        """Waits for a message, and meanwhile does what was put off; ``None`` if no more will come."""
        while not self._received:
            while (self._later or self._gathering) and not self._connection.poll(self._pause()):
                self._do_next()
            try:
                messages: list[Message] | None = self._connection.recv()
            except (EOFError, OSError):
                return None
            if messages is None:
                return None
            self._received.extend(messages)
        return self._received.popleft()

    def leave(self) -> None:
        """Ends the runs that are still open: their process was killed."""
        while self._later or self._gathering:
            self._do_next()
        for run in self._runs.values():
            run.close("KILLED")

    def _pause(self) -> float:
        """Seconds without a message after which the next thing that was put off is done."""
        gathering = 0.0 if self._later else next(iter(self._gathering.values())) - time.monotonic()
        return max(gathering, 0.0 if self._training else QUIET)

    def _do_next(self) -> None:
        if self._later:
            number, work = self._later.popleft()
            self._try(number, work)
        else:
            self._let_go(next(iter(self._gathering)))

    def _have_opened(self, number: int) -> None:
        if number not in self._runs:
            self._do_all_of(number)  # which begins with that

    def _do_all_of(self, number: int) -> None:
        mine = [work for owner, work in self._later if owner == number]
        self._later = deque(item for item in self._later if item[0] != number)
        for work in mine:
            self._try(number, work)

    def _let_go(self, number: int) -> None:
        if self._gathering.pop(number, None) is not None:
            self._try(number, self._runs[number].outbox.let_go)

    def _try(self, number: int, work: Callable[[], object]) -> None:
        if number in self._failed:
            return
        try:
            work()
        except UserError as error:
            self._failed.add(number)
            self._reply("error", str(error))

    def _open(self, number: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        while named.get("run_id") and self._later:
            self._do_next()  # the end of the run that is to go on may be among it
        run = self._runs[number] = open_run(*arguments, **named)
        run.outbox.keep_back()
        self._gathering[number] = time.monotonic() + GATHERING
        self._reply(("opened", number), Opened(run.run_id, run.experiment_id, run.url))
        run.store.settle()  # what is on disk from now on names the run

    def _answer(self, number: int, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._reply(("answer", number, method), self._call(number, method, arguments, named))

    def _close(self, number: int, arguments: tuple[Any, ...]) -> None:
        """Puts all that is left of a run on disk, and the rest off: who waits for the end does not wait for MLflow."""
        self._runs[number].outbox.keep_back()
        self._gathering.pop(number, None)
        self._do_all_of(number)
        self._later.append((number, self._runs.pop(number).close_by_disk(*arguments)))
        self._reply(("answer", number, "close"), None)

    def _call(self, number: int, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return getattr(self._runs[number], method)(*arguments, **named)

    def _reply(self, key: Any, value: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more, but what was said before is still written
            self._connection.send((key, value))


def serve(connection: Connection) -> None:
    """Does what it is told until the other side is done, or gone: then the runs still open were killed."""
    desk = Desk(connection)
    while (message := desk.next()) is not None:
        desk.take(*message)
    desk.leave()
    finish_all()


def _load_mlflow() -> None:
    """What opening the first run would wait for; the collector passes over what lasts, and comes less often."""
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking  # noqa: F401

    gc.freeze()
    gc.set_threshold(20_000)  # a trial's record makes some 100,000 short-lived objects


def main(arguments: list[str]) -> Any:
    """Serves the socket whose number is given."""
    # Ctrl-C and a scheduler's signal reach the whole group: the training ends its runs, and they are written here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    protect_output()
    atexit.register(gc.freeze)  # Python would look for cycles among all that MLflow has loaded, for half a second
    os.nice(5)  # the training comes first; at a lower priority a busy machine would let a sweep wait for its records
    sync_files_late()
    serve(Connection(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
