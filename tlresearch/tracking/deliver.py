"""The process that writes runs to MLflow for a `RemoteTracker`: calls come in order through a socket."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from tlresearch.errors import UserError
from tlresearch.tracking.courier import finish_all
from tlresearch.tracking.redact import protect_output
from tlresearch.tracking.remote import Message, Opened
from tlresearch.tracking.run import TrackedRun, open_run


def serve(connection: Connection) -> None:
    """Does what it is told until the other side is done, or gone: then the runs still open were killed."""
    runs: dict[int, TrackedRun] = {}
    failed: set[int] = set()
    for number, method, arguments, named, wanted in _messages(connection):
        if number in failed:
            continue
        try:
            if method == "warm":
                _load_mlflow()
                continue
            if method == "open":
                run = runs[number] = open_run(*arguments, **named)
                _reply(connection, ("opened", number), Opened(run.run_id, run.experiment_id, run.url))
                continue
            if method == "close":  # whoever waits for it goes on as soon as the disk has it
                kept = partial(_reply, connection, ("answer", number, "close"), None)
                status, tags = arguments
                runs.pop(number).close_by_disk(status, tags, kept)
                continue
            answer = getattr(runs[number], method)(*arguments, **named)
            if wanted:
                _reply(connection, ("answer", number, method), answer)
        except UserError as error:
            failed.add(number)
            _reply(connection, "error", str(error))
    for run in runs.values():
        run.close("KILLED")
    finish_all()


def _load_mlflow() -> None:
    """What opening the first run would wait for."""
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking  # noqa: F401


def _reply(connection: Connection, key: Any, value: Any) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more, but what was said before is still written
        connection.send((key, value))


def _messages(connection: Connection) -> Iterator[Message]:
    while True:
        try:
            message: Message | None = connection.recv()
        except (EOFError, OSError):
            return
        if message is None:
            return
        yield message


def main(arguments: list[str]) -> Any:
    """Serves the socket whose number is given."""
    # Ctrl-C and a scheduler's signal reach the whole group: the training ends its runs, and they are written here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    protect_output()
    atexit.register(gc.freeze)  # Python would look for cycles among all that MLflow has loaded, for half a second
    os.nice(5)  # the training comes first; at a lower priority a busy machine would let a sweep wait for its records
    serve(Connection(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
