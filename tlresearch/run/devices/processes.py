"""The processes of a run over several devices: rank 0 starts the other ranks, and none outlives the run.

Why neither torchrun nor Lightning's launcher: both start a whole command once per rank. Lightning runs ``sys.argv``
again in each further rank, so every rank would open the sweep, ask Optuna for a trial or go through a group's seeds
itself; torchrun must start the command. Lightning's launcher for notebooks forks, which works only in a process that
has used neither GPUs nor threads yet, so the run of the next cell could not start. With any of them, trials, seeds of
a group and cells of a notebook could not use several devices. This launcher starts ranks for a single run, inside a
process that goes on afterwards, and hands them the config of that run. Ranks that torchrun has started are used as
they are.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import IO, Any

from torch import distributed

from tlresearch.base.ranks import SOCKET

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds that a rank may take to end after rank 0 has


class RankDiedError(RuntimeError):
    """Another process of the run is gone; the text holds the last line of its output."""


@dataclass
class Ranks:
    """The other processes of a run, as this process sees them; none for a run on one device.

    Attributes:
        started_here: Whether this module started the processes of the run, and not torchrun.
    """

    started_here: bool = False

    def meet(self) -> None:
        """Waits until every process of the run has called this; from then on they compute together."""


@dataclass
class _Leader(Ranks):
    """The other processes as rank 0, which has started them, sees them."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    logs: list[IO[bytes]] = field(default_factory=list)

    def start(self, rank: int, environment: Mapping[str, str], brief: Mapping[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # Not `with`: the file is read after the process has died.
            output = tempfile.TemporaryFile()  # noqa: SIM115
            self.logs.append(output)
            process = subprocess.Popen(
                [sys.executable, "-m", "tlresearch.studies.launch.rank"],
                env={**os.environ, **environment, "LOCAL_RANK": str(rank), SOCKET: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches rank 0 only, which ends the other ranks
            )
        self.processes.append(process)
        connection = Connection(ours.detach())
        self.connections.append(connection)
        with contextlib.suppress(OSError):  # a process that has died already is noticed by `meet`
            connection.send_bytes(json.dumps(dict(brief)).encode())

    def meet(self) -> None:
        for number in range(len(self.processes)):
            try:
                self.connections[number].recv_bytes()
            except (EOFError, OSError):
                self.processes[number].wait(PATIENCE)
                raise RankDiedError(self._last_words(number)) from None
        for connection in self.connections:
            connection.send_bytes(b"go")

    def end(self, error: BaseException | None) -> None:
        """Waits for the processes to end; after an error stops them, and names a process that caused it by dying."""
        try:
            if error is None:
                self._await_ends()
            elif _connection_lost(error):
                self._raise_rank_died(error)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
            for connection in self.connections:
                connection.close()
            for output in self.logs:
                output.close()

    def _await_ends(self) -> None:
        for number, process in enumerate(self.processes):
            try:
                if process.wait(PATIENCE) != 0:
                    log.warning("the run has succeeded, but %s", self._last_words(number))
            except subprocess.TimeoutExpired:
                log.warning("rank %d of the run did not end with it and is stopped", number + 1)

    def _raise_rank_died(self, error: BaseException) -> None:
        for number, process in enumerate(self.processes):
            # The lost connection may be noticed before the process has ended completely.
            with contextlib.suppress(subprocess.TimeoutExpired):
                if process.wait(1.0) != 0:
                    raise RankDiedError(self._last_words(number)) from error

    def _last_words(self, number: int) -> str:
        self.logs[number].seek(0)
        lines = [line for line in self.logs[number].read().decode(errors="replace").splitlines() if line.strip()]
        code = self.processes[number].returncode
        last = lines[-1].strip() if lines else "without output"
        return f"rank {number + 1} of the run ended with exit code {code}: {last}"


@dataclass
class _Follower(Ranks):
    """The run as a rank above 0 sees it: through its connection with rank 0."""

    connection: Connection | None = None

    def meet(self) -> None:
        assert self.connection is not None
        self.connection.send_bytes(b"here")
        self.connection.recv_bytes()
        threading.Thread(target=_end_with, args=[self.connection], daemon=True).start()


@contextlib.contextmanager
def start_ranks(devices: int, brief: Mapping[str, Any]) -> Iterator[Ranks]:
    """Starts the other processes of a run, in rank 0; none outlives the context.

    Each rank receives the config of this run. If torchrun has started the processes, none is started.

    Args:
        devices: Devices, and so processes, of the run.
        brief: Plain values that every other process gets from `read_brief`.

    Raises:
        RankDiedError: If another process has died.
    """
    to_leader = _to_leader.get("connection")
    if to_leader is not None:
        yield _Follower(True, to_leader)
        return
    if devices == 1 or "LOCAL_RANK" in os.environ or "RANK" in os.environ:
        yield Ranks()
        return
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(devices),
        "NODE_RANK": "0",
        # Each rank must be able to import what a config names by dotted path.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    leader = _Leader(True)
    failure: BaseException | None = None
    try:
        for rank in range(1, devices):
            leader.start(rank, environment, brief)
        with _as_rank_0(environment):
            yield leader
    except BaseException as error:
        failure = error
        raise
    finally:
        leader.end(failure)


def read_brief() -> dict[str, Any]:
    """Connects to rank 0, which has started this process, and returns the brief that it sends."""
    connection = _to_leader["connection"] = Connection(int(os.environ[SOCKET]))
    brief: dict[str, Any] = json.loads(connection.recv_bytes())
    return brief


_to_leader: dict[str, Connection] = {}
"""In a process that `start_ranks` has started: ``connection``, the connection with rank 0."""


@contextlib.contextmanager
def _as_rank_0(environment: Mapping[str, str]) -> Iterator[None]:
    """Makes this process rank 0 while a run lasts. The next run has new processes, and another port."""
    place = {key: value for key, value in environment.items() if key != "PYTHONPATH"} | {"LOCAL_RANK": "0"}
    previous = {key: os.environ.get(key) for key in place}
    os.environ.update(place)
    try:
        yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for key, value in previous.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def _end_with(connection: Connection) -> None:
    """Ends this process when rank 0 is gone: a collective operation would wait for it for ever."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()
    os._exit(1)  # from this thread: `sys.exit` would end only the thread, and the main thread may be in C code


def _connection_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone: torch has no class of its own for that."""
    text = str(error).lower()
    signs: Sequence[str] = ("gloo", "nccl", "connection closed", "connection reset", "recvvalue failed", "broken pipe")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
