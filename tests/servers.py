"""Real servers for tests: MLflow, PostgreSQL, and a relay in front of either that can be told to misbehave.

Each is a context manager; what it hands out can be stopped and started again at the same address::

    with mlflow_server(tmp_path, template=empty_database) as server, relay(server.port) as proxy:
        uri = f"http://127.0.0.1:{proxy.port}"
        proxy.mode = "refuse"
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

PATIENCE = 120.0  # seconds; a busy machine takes half a minute to import MLflow
PASSWORD = "hunter2secret"
"""Password of every PostgreSQL cluster here: a test looks for it where it must not be."""
_USER = "researcher"


def free_port() -> int:
    """A port of the loopback interface that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """A real `mlflow server` with one worker.

    Attributes:
        port: Where it listens on 127.0.0.1, also after it was started again; `uri` is the whole address.
    """

    def __init__(self, folder: Path, backend: str) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder, self._backend = folder, backend
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--artifacts-destination", str(self._folder / "served")]
        settings = {
            "MLFLOW_BACKEND_STORE_URI": self._backend,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONWARNINGS": "ignore",
        }
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                pytest.fail(f"mlflow server did not start:\n{(self._folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Kills it, so that it answers nobody any more; no harm if it is down."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=10) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


@contextlib.contextmanager
def mlflow_server(
    folder: Path, *, backend: str | None = None, template: Path | None = None, started: bool = True
) -> Iterator[MlflowServer]:
    """A server with a store of its own.

    Args:
        folder: Where store, artifacts and log go.
        backend: Database behind it; SQLite in `folder` without one.
        template: An SQLite database with MLflow's tables to begin with (the fixture `empty_database`): saves seconds.
        started: Whether it runs at first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if backend is None:
        backend = f"sqlite:///{folder}/server.db"
        if template is not None and not (folder / "server.db").exists():
            shutil.copy(template, folder / "server.db")
    server = MlflowServer(folder, backend)
    try:
        if started:
            server.start()
        yield server
    finally:
        server.stop()


class Postgres:
    """A PostgreSQL cluster of its own on 127.0.0.1, without fsync.

    Attributes:
        port: Where it listens, also after it was started again.
    """

    def __init__(self, folder: Path, binaries: Path, user: str | None) -> None:
        self.port = free_port()
        self._folder, self._binaries, self._user = folder, binaries, user
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if user is not None:
            shutil.chown(secret, user)
        self._call(
            "initdb", "-D", str(folder / "data"), "-U", _USER, "--auth=scram-sha-256", f"--pwfile={secret}",
            "--no-sync", "--encoding=UTF8", "--locale=C",
        )  # fmt: skip

    def start(self) -> None:
        """Starts it and waits until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        # What was committed outlives its processes, as it has to, though not the machine's power.
        options += " -c full_page_writes=off -c max_connections=200"
        self._control("start", "-o", options, "-l", str(self._folder / "log"), "-t", str(int(PATIENCE)))

    def stop(self, how: Literal["fast", "immediate"] = "immediate") -> None:
        """Stops it, by default as a crash would; no harm if it is down."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self._control("stop", "-m", how)

    def database(self, name: str = "records") -> str:
        """Makes an empty database; returns its address, password included, for any driver SQLAlchemy finds."""
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", _USER, name)
        return self.uri(name)

    def uri(self, name: str = "records", port: int | None = None) -> str:
        """Address of a database, also through a relay that listens at another port."""
        return f"postgresql://{_USER}:{PASSWORD}@127.0.0.1:{port or self.port}/{name}"

    def _control(self, action: str, *arguments: str) -> None:
        self._call("pg_ctl", "-D", str(self._folder / "data"), "-w", *arguments, action)

    def _call(self, program: str, *arguments: str) -> None:
        identity = {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid} if self._user else {}
        with (self._folder / "calls").open("a+b") as log:  # a pipe would stay open as long as the server runs
            start = log.tell()
            done = subprocess.run(
                [str(self._binaries / program), *arguments],
                env=os.environ | {"PGPASSWORD": PASSWORD},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
                **identity,  # type: ignore[call-overload]
            )
            log.seek(start)
            if done.returncode:
                pytest.fail(f"{program} failed: {log.read().decode()[-2000:]}")


@contextlib.contextmanager
def postgres(*, started: bool = True) -> Iterator[Postgres]:
    """A fresh cluster; the test is skipped where PostgreSQL or SQLAlchemy's driver for it is missing.

    As root it runs as the user ``postgres`` or ``nobody``, since it refuses root.
    """
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    pytest.importorskip("psycopg", reason="the extra postgres is not installed")
    folder = Path(tempfile.mkdtemp(prefix="tlresearch-postgres-"))  # pytest's own folders are closed to other users
    user = None
    if os.geteuid() == 0:
        known = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in ("postgres", "nobody") if name in known), None)
        if user is None:
            pytest.skip("PostgreSQL refuses root, and there is no other user")
        shutil.chown(folder, user)
    try:
        cluster = Postgres(folder, binaries, user)
        try:
            if started:
                cluster.start()
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)


def _binaries() -> Path | None:
    places = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "pg_ctl").exists()), None)


Mode = Literal["normal", "refuse", "hang", "500", "slow", "lost"]


class Relay:
    """Passes bytes on to a port of this machine, or misbehaves; a change of `mode` reaches open connections too.

    Modes: ``normal``; ``refuse`` (nobody listens, connections are cut); ``hang`` (takes everything, says nothing);
    ``500`` (answers every HTTP request so); ``slow`` (each piece waits for `delay`); ``lost`` (requests arrive, but
    the connection is cut instead of passing on the answer: the server did it, and the client does not know).

    Attributes:
        port: Where it listens on 127.0.0.1.
        delay: Seconds that a piece of data waits in ``slow``.
        requests: Pieces of data that came from clients, in whatever mode.
    """

    def __init__(self, target: int) -> None:
        self.delay = 0.3
        self.requests = 0
        self._target = target
        self._mode: Mode = "normal"
        self._changed = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = free_port()
        self._listen()

    @property
    def mode(self) -> Mode:
        """How it behaves now."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode
        if mode == "refuse":
            self.close()
        elif self._listener is None:
            self._listen()
        else:
            self.cut()  # whoever waits in the old mode

    def cut(self) -> None:
        """Cuts every open connection."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stops listening and cuts every connection."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes whoever waits in accept
            self._listener.close()
            self._listener = None
        self.cut()

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            self._open.add(client)
            try:
                if self._mode in ("hang", "500"):
                    self._answer(client)
                else:
                    with socket.create_connection(("127.0.0.1", self._target)) as server:
                        self._open.add(server)
                        back = threading.Thread(target=self._pass_on, args=(server, client), daemon=True)
                        back.start()
                        self._pass_on(client, server, count=True)
                        back.join()
                        self._open.discard(server)
            finally:
                self._open.discard(client)

    def _pass_on(self, source: socket.socket, to: socket.socket, *, count: bool = False) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                self.requests += count
                if self._mode == "slow":
                    time.sleep(self.delay)
                if self._mode == "lost" and not count:
                    break
                to.sendall(piece)
        for end in (source, to):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _answer(self, client: socket.socket) -> None:
        while client.recv(65536):
            self.requests += 1
            if self._mode == "500":
                _drain(client)
                body = b"out of order"
                head = b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nConnection: close\r\n"
                client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                return


def _drain(client: socket.socket) -> None:
    """Reads the rest of a request: whoever is answered while still sending sees a broken connection instead."""
    client.settimeout(0.1)
    with contextlib.suppress(TimeoutError):
        while client.recv(65536):
            pass


@contextlib.contextmanager
def relay(target: int) -> Iterator[Relay]:
    """A relay in front of a port of this machine."""
    between = Relay(target)
    try:
        yield between
    finally:
        between.close()
