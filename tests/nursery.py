"""Starts commands of tlresearch as processes of their own, many times, with the libraries imported once.

A process that has imported everything (`forking.py`) forks for each command. The child is killed for real, and starts
its helpers (workers, the process that writes to MLflow) as always.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PATIENCE = 120.0  # seconds for what a command has started to end after it
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal that killed it) and all it wrote."""

    code: int
    output: str


class Command:
    """A command under way; its process and all that it has started belong to it."""

    def __init__(self, answers: socket.socket, log: Path) -> None:
        self._answers = answers.makefile("r")
        answers.close()
        self.pid = self._answer()
        self._log = log

    def processes(self) -> list[psutil.Process]:
        """It and everything it has started."""
        try:
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def kill_all(self) -> None:
        """Kills everything at once, as if the machine had lost its power."""
        every = self.processes()
        for process in every:
            _quietly(process.suspend)  # so that none sees another one die
        for process in every:
            _quietly(process.kill)

    def signal(self, number: int) -> None:
        """Sends a signal to the command alone."""
        _quietly(lambda: os.kill(self.pid, number))

    def wait(self) -> Ended:
        """Waits for its end, and for that of what it has started."""
        every = self.processes()
        with self._answers:
            code = self._answer()
        deadline = time.monotonic() + PATIENCE
        while any(lives(process) for process in every) and time.monotonic() < deadline:
            time.sleep(0.05)
        return Ended(code, self.output())

    def _answer(self) -> int:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("the process that starts commands has died")
        return int(line)


class Nursery:
    """The process that starts commands.

    Args:
        modules: What it imports beside the product.
        environment: Variables that it gets beside its own; what libraries read when they are imported stays for all.

    Attributes:
        address: The socket at which commands are asked for.
    """

    def __init__(self, *modules: str, **environment: str) -> None:
        self._modules = modules
        self._environment = environment

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="nursery-")  # names of sockets are short
        self.address = str(Path(self._folder.name) / "socket")
        fixed = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(ROOT / "tests" / "forking.py"), self.address, *self._modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | fixed | self._environment,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError("the libraries could not be imported")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for child in psutil.Process(self._process.pid).children(recursive=True):
            _quietly(child.kill)
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._folder.cleanup()

    def start(self, arguments: Sequence[str], folder: Path, home: Path, **environment: str) -> Command:
        """Starts a command in a folder, with a home."""
        log = folder / f"output-{time.monotonic_ns()}.txt"
        settings = (
            os.environ | self._environment | {"OMP_NUM_THREADS": "1", "TLRESEARCH_HOME": str(home), **environment}
        )
        task = {"arguments": [*arguments], "folder": str(folder), "environment": settings}
        asking = socket.socket(socket.AF_UNIX)
        asking.connect(self.address)
        with log.open("a") as output, open(os.devnull) as nothing:
            streams = [nothing.fileno(), output.fileno(), output.fileno()]
            text = f"{json.dumps(task)}\n".encode()
            sent = socket.send_fds(asking, [text], streams)
            asking.sendall(text[sent:])
        return Command(asking, log)

    def run(self, arguments: Sequence[str], folder: Path, home: Path, **environment: str) -> Ended:
        """Runs a command to its end."""
        return self.start(arguments, folder, home, **environment).wait()


def lives(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that has, but that nobody has asked, is still listed."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _quietly(action: Callable[[], object]) -> None:
    with contextlib.suppress(psutil.Error, ProcessLookupError):  # it has just ended
        action()
