"""Runs that another process writes to MLflow, so that recording is never in the step's way.

A short trial takes a few hundred milliseconds, and so do the database calls that record it. They are handed to one
process that stays for the whole sweep and does them in order, while the next epochs train.
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tlresearch.base.errors import TrackingError
from tlresearch.config.schema import TrackingConfig
from tlresearch.tracking.calls import new_local_id
from tlresearch.tracking.ending import TerminationGuard
from tlresearch.tracking.run import Status, TrackedRun
from tlresearch.tracking.sender import Sender

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Opened:
    """What the writing process says of a run it has opened."""

    run_id: str
    experiment_id: str
    url: str


class RemoteTracker:
    """Opens runs in a process of its own; leaving the context waits until everything is written.

    Errors of the store come back with the next run that is opened or closed, or when everything is written.

    Args:
        warm: Whether its process starts at once and loads MLflow, which takes seconds, instead of with the first run.
    """

    _process: subprocess.Popen[bytes] | None = None

    def __init__(self, *, warm: bool = False) -> None:
        if warm:
            self._start()
            self.call(0, "warm")

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tlresearch.tracking.deliver", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self._connection = Connection(ours.detach())
        self._numbers = itertools.count()
        self._opened = False
        self._answers: dict[tuple[Any, ...], Any] = {}
        self._errors: list[str] = []
        self._sender = Sender(self._connection)

    def open_run(self, config: TrackingConfig, *, name: str, run_id: str | None = None, **about: Any) -> RemoteRun:
        """Opens a run as `tracking.run.open_run` does, without waiting for it: it is made when it is trained."""
        if self._process is None:
            self._start()
        self.raise_errors()
        number, self._opened = next(self._numbers), True
        params = about.pop("params")
        reference = run_id or new_local_id()
        about |= {"name": name, "run_id": run_id, "local_id": reference, "began": time.time(), "params": {}}
        self.call(number, "open", config, **about)
        self.call(number, "log_params", params)
        return RemoteRun(self, number, name, reference)

    def opened(self, number: int) -> Opened:
        """Waits until a run has been opened, now if it was put off.

        Raises:
            TrackingError: As `answer`.
        """
        key = ("opened", number)
        if key not in self._answers:
            self.raise_errors()  # and takes what has come
            if key not in self._answers:
                self.call(number, "opened", urgent=True)
        opened: Opened = self.answer(key)
        return opened

    def call(self, number: int, method: str, *arguments: Any, urgent: bool = False, **named: Any) -> None:
        """Has a method of a run called, some time soon and in order; an urgent one now."""
        self._sender.put((number, method, arguments, named, False), urgent=urgent)

    def ask(self, number: int, method: str, *arguments: Any, **named: Any) -> Any:
        """Has a method of a run called and waits for what it returns."""
        return self.begin(number, method, *arguments, **named)()

    def begin(self, number: int, method: str, *arguments: Any, **named: Any) -> Callable[[], Any]:
        """Has a method of a run called now; what is returned waits for what it returns."""
        self._sender.put((number, method, arguments, named, True), urgent=True)
        return partial(self.answer, ("answer", number, method))

    def answer(self, key: Any) -> Any:
        """Waits for an answer; that to an opened run stays.

        Raises:
            TrackingError: If the run cannot be recorded, or the writing process has died.
        """
        while key not in self._answers:
            self.raise_errors()  # in front of the wait: nothing more is answered of a run that was refused something
            if key not in self._answers:
                self._receive()
        return self._answers[key] if key[0] == "opened" else self._answers.pop(key)

    def raise_errors(self) -> None:
        """Raises what the store refused, if it did.

        Raises:
            TrackingError: With the first reason.
        """
        while self._connection.poll():
            self._receive()
        if self._errors:
            raise TrackingError(self._errors[0])

    def _receive(self) -> None:
        try:
            key, value = self._connection.recv()
        except (EOFError, OSError):
            raise TrackingError("the process that writes to MLflow has died; the same command continues") from None
        if key == "error":
            self._errors.append(value)
        else:
            self._answers[key] = value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends as `finish` does; its errors give way to one that is on its way already."""
        try:
            self.finish()
        except TrackingError:
            if error is None:
                raise

    def finish(self) -> None:
        """Waits until everything is written, and ends the process; a second call does nothing.

        Raises:
            TrackingError: If the store refused something.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if not self._opened:
            process.kill()  # it was told nothing
        self._sender.finish()
        try:
            self._connection.send(None)
            while True:
                self._receive()
        except (TrackingError, OSError):
            process.wait()
        self._connection.close()
        if self._errors:
            raise TrackingError(self._errors[0])
        if self._opened and process.returncode:
            raise TrackingError("the process that writes to MLflow has died; the same command continues")


class RemoteRun(TrackedRun):
    """A run that is written by the process of a `RemoteTracker`.

    Args:
        tracker: The tracker.
        number: The run's number there.
        name: Its name.
        reference: What it can be continued by, before it has been opened.
    """

    def __init__(self, tracker: RemoteTracker, number: int, name: str, reference: str) -> None:
        # Not `super().__init__`: store and writer are in the other process.
        self._tracker, self._number, self._reference = tracker, number, reference
        self.name = name
        self.description = ""
        self.status = "RUNNING"
        self._pruned = self._training = False
        self._signals = TerminationGuard()
        self._tags: dict[str, str] = {}
        self._closed: Callable[[], Any] | None = None

    @property
    def _opened(self) -> Opened:
        return self._tracker.opened(self._number)

    @property
    def run_id(self) -> str:
        """Its id; waits until it has been opened."""
        return self._opened.run_id

    @property
    def reference(self) -> str:
        """What it can be continued by, known at once."""
        return self._reference

    @property
    def experiment_id(self) -> str:
        """The experiment it belongs to."""
        return self._opened.experiment_id

    @property
    def url(self) -> str:
        """Address of the run in the UI."""
        return self._opened.url

    def log_params(self, params: Mapping[str, object]) -> None:
        """Stores params."""
        self._tracker.call(self._number, "log_params", dict(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes metrics."""
        plain = {key: float(value) for key, value in metrics.items()}
        # The first ones say that the network is trained from now on, which is when the writing process works.
        self._tracker.call(self._number, "log_metrics", plain, step, urgent=not self._training)
        self._training = True

    def last_step(self, metric: str) -> int:
        """The largest step recorded for a metric."""
        return int(self._tracker.ask(self._number, "last_step", metric))

    def flush(self) -> bool:
        """Waits until what was logged is in the store or on disk: it outlives this process, and that of the tracker."""
        self._send_tags()
        return bool(self._tracker.ask(self._number, "flush"))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags, all of them in one write: at a checkpoint, or at the end."""
        self._tags.update(tags)

    def _send_tags(self) -> None:
        if self._tags:
            self._tracker.call(self._number, "set_tags", self._tags)
            self._tags = {}

    def count(self, tag: str) -> None:
        """Adds one to a tag that is a number."""
        self._tracker.call(self._number, "count", tag)

    def log_text(self, text: str, path: str) -> None:
        """Stores text as an artifact."""
        self._tracker.call(self._number, "log_text", text, path)

    def log_at_end(self, text: str, path: str) -> None:
        """Stores text as an artifact when the run ends."""
        self._tracker.call(self._number, "log_at_end", text, path)

    def log_dict(self, content: Mapping[str, Any], path: str) -> None:
        """Stores a mapping as an artifact."""
        self._tracker.call(self._number, "log_dict", dict(content), path)

    def log_file(self, file: Path, folder: str = "") -> None:
        """Stores a file or a folder, and waits: it may be gone the next moment."""
        self._tracker.ask(self._number, "log_file", file, folder)

    def store_model(self, about: Mapping[str, Any], folder: Path) -> str:
        """Stores a model, and waits."""
        return str(self._tracker.ask(self._number, "store_model", dict(about), folder))

    def log_figure(self, figure: Figure, path: str) -> None:
        """Stores a figure as an artifact."""
        TrackedRun.log_figure(self, figure, path)  # draws here, and stores by `log_file`

    def log_dataset(self, name: str, digest: str, **about: Any) -> None:
        """Records a split of the data."""
        self._tracker.call(self._number, "log_dataset", name, digest, **about)

    def download(self, path: str) -> Path:
        """Returns a local copy of an artifact."""
        return Path(self._tracker.ask(self._number, "download", path))

    def start_system_metrics(self) -> None:
        """Measures the machine until the run ends."""
        self._tracker.call(self._number, "start_system_metrics")

    def mark_pruned(self, reason: str) -> None:
        """Marks a run that a pruner stopped."""
        self._pruned = True
        self._send_tags()
        self._tracker.call(self._number, "mark_pruned", reason)

    def begin_close(self, status: Status = "FINISHED") -> None:
        """Has the run ended without waiting for it, which `close` does."""
        if self.status == "RUNNING":
            self.status = status
            self._closed = self._tracker.begin(self._number, "close", status, self._tags)

    def close(self, status: Status = "FINISHED") -> None:
        """Ends the run and waits until that is on disk, if not in the store; a second call does nothing.

        The study is told of a trial after this: were it the other way round, all that is killed in between would leave
        a trial that counts, with half a run.
        """
        self.begin_close(status)
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()
            self._tracker.raise_errors()

    def abandon(self) -> None:
        """The writing process closes what is left open."""
