"""The processes of a run over several devices: the one that records the run starts the others, and ends with them.

Why not torchrun, or Lightning's own launcher: both start a whole command once per rank. Lightning's runs ``sys.argv``
again for each further rank, so every rank would open the sweep, ask Optuna for a trial or go through a group's seeds
by itself; torchrun wants to be the one that starts the command. Lightning's launcher for notebooks forks, which needs
a process that has not used its GPUs or threads yet, and the next cell's run would not start from one. So with either
of them trials, seeds of a group and cells of a notebook could not have several devices. This launcher starts ranks for
a single run, inside a process that goes on afterwards, and hands them the config of that run; ranks that torchrun has
started are taken as they are.
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
    """Another process of the run is gone, and what it had to say last."""


@dataclass
class Others:
    """The other processes of a run, as one of them sees them; none for a run on one device.

    Attributes:
        started_here: Whether this run's processes are started by this module, rather than by torchrun.
    """

    started_here: bool = False

    def meet(self) -> None:
        """Waits until every process of the run has come here: from now on they compute together."""


@dataclass
class _Led(Others):
    """What rank 0 has started."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    logs: list[IO[bytes]] = field(default_factory=list)

    def start(self, rank: int, environment: Mapping[str, str], brief: Mapping[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # Not `with`: it is read when the process has died.
            said = tempfile.TemporaryFile()  # noqa: SIM115
            self.logs.append(said)
            process = subprocess.Popen(
                [sys.executable, "-m", "tlresearch.studies.launch.rank"],
                env={**os.environ, **environment, "LOCAL_RANK": str(rank), SOCKET: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is rank 0's business, which ends the others
            )
        self.processes.append(process)
        connection = Connection(ours.detach())
        self.connections.append(connection)
        with contextlib.suppress(OSError):  # a process that is gone already is missed when they meet
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
        """Lets the processes come to their end; after an error they are stopped, and a dead one is named."""
        try:
            if error is None:
                self._await_ends()
            elif _connection_lost(error):
                self._name_the_dead(error)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
            for connection in self.connections:
                connection.close()
            for said in self.logs:
                said.close()

    def _await_ends(self) -> None:
        for number, process in enumerate(self.processes):
            try:
                if process.wait(PATIENCE) != 0:
                    log.warning("the run has ended well, but %s", self._last_words(number))
            except subprocess.TimeoutExpired:
                log.warning("rank %d of the run did not end with it and is stopped", number + 1)

    def _name_the_dead(self, error: BaseException) -> None:
        for number, process in enumerate(self.processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                if process.wait(1.0) != 0:
                    raise RankDiedError(self._last_words(number)) from error

    def _last_words(self, number: int) -> str:
        self.logs[number].seek(0)
        lines = [line for line in self.logs[number].read().decode(errors="replace").splitlines() if line.strip()]
        code = self.processes[number].returncode
        last = lines[-1].strip() if lines else "it said nothing"
        return f"rank {number + 1} of the run ended with exit code {code}: {last}"


@dataclass
class _Following(Others):
    """Rank 0, as the others see it."""

    connection: Connection | None = None

    def meet(self) -> None:
        assert self.connection is not None
        self.connection.send_bytes(b"here")
        self.connection.recv_bytes()
        threading.Thread(target=_end_with, args=[self.connection], daemon=True).start()


@contextlib.contextmanager
def others(devices: int, brief: Mapping[str, Any]) -> Iterator[Others]:
    """The processes of a run, for the time of the run; rank 0 starts them, and none outlives it.

    Each rank is told the config of the one run. Where torchrun has started the processes, they are left as they are.

    Args:
        devices: Devices, and so processes, of the run.
        brief: What `brief` gives the other processes; plain values.

    Raises:
        RankDiedError: If another process has died.
    """
    following = _following.get("connection")
    if following is not None:
        yield _Following(True, following)
        return
    if devices == 1 or "LOCAL_RANK" in os.environ or "RANK" in os.environ:
        yield Others()
        return
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(devices),
        "NODE_RANK": "0",
        # What a config names by dotted path must be found there too.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    led = _Led(True)
    failure: BaseException | None = None
    try:
        for rank in range(1, devices):
            led.start(rank, environment, brief)
        with _as_rank_0(environment):
            yield led
    except BaseException as error:
        failure = error
        raise
    finally:
        led.end(failure)


def read_brief() -> dict[str, Any]:
    """What rank 0 tells this process, which it has started."""
    connection = _following["connection"] = Connection(int(os.environ[SOCKET]))
    content: dict[str, Any] = json.loads(connection.recv_bytes())
    return content


_following: dict[str, Connection] = {}


@contextlib.contextmanager
def _as_rank_0(environment: Mapping[str, str]) -> Iterator[None]:
    """Gives this process its place for the time of a run; the next one meets other processes, at another port."""
    place = {key: value for key, value in environment.items() if key != "PYTHONPATH"} | {"LOCAL_RANK": "0"}
    before = {key: os.environ.get(key) for key in place}
    os.environ.update(place)
    try:
        yield
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def _end_with(connection: Connection) -> None:
    """Ends this process when rank 0 is gone: what it waits for will never come."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()
    os._exit(1)


def _connection_lost(error: BaseException) -> bool:
    text = str(error).lower()
    known: Sequence[str] = ("gloo", "nccl", "connection closed", "connection reset", "recvvalue failed", "broken pipe")
    return isinstance(error, RuntimeError) and any(word in text for word in known)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
