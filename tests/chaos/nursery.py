"""Starts commands of tlresearch as processes of their own, many times, with the libraries imported once.

A process that has imported everything waits for commands on its standard input and forks for each. The child is what
`tlresearch` is: it calls the same `cli.main`, in a session of its own, and is killed for real. Its helpers (workers,
the process that writes to MLflow) are started by it as always.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

PATIENCE = 120.0  # seconds for what a command has started to end after it
ROOT = Path(__file__).parents[2]
_SERVER = """
import json, os, resource, signal, sys, warnings
warnings.simplefilter("ignore")
import torch, lightning.pytorch, mlflow.store.tracking.sqlalchemy_store, optuna
torch.set_num_threads(1)
import tlresearch.sweep, tlresearch.commands.run, tlresearch.commands.sweep
from tlresearch.cli import main
print("ready", flush=True)
for line in sys.stdin:
    task = json.loads(line)
    process = os.fork()
    if process == 0:
        os.setsid()
        os.chdir(task["folder"])
        os.environ.update(task["environment"])
        log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        sys.argv = ["tlresearch", *task["arguments"]]
        code = 1
        try:
            code = main(task["arguments"])
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            import traceback
            traceback.print_exc()
        try:
            import atexit
            atexit._run_exitfuncs()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)
    print(json.dumps({"pid": process}), flush=True)
    status = os.waitpid(process, 0)[1]
    print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal that killed it) and all it wrote."""

    code: int
    output: str


class Command:
    """A command under way; its process and all that it has started belong to it."""

    def __init__(self, nursery: Nursery, pid: int, log: Path) -> None:
        self._nursery = nursery
        self.pid = pid
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
        code = int(self._nursery.read()["code"])
        deadline = time.monotonic() + PATIENCE
        while any(lives(process) for process in every) and time.monotonic() < deadline:
            time.sleep(0.05)
        return Ended(code, self.output())


class Nursery:
    """The process that starts commands, one at a time."""

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
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

    def start(self, arguments: Sequence[str], folder: Path, home: Path, **environment: str) -> Command:
        """Starts a command in a folder, with a home."""
        log = folder / f"output-{time.monotonic_ns()}.txt"
        settings = {"TLRESEARCH_HOME": str(home), **environment}
        task = {"arguments": [*arguments], "folder": str(folder), "log": str(log), "environment": settings}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return Command(self, int(self.read()["pid"]), log)

    def run(self, arguments: Sequence[str], folder: Path, home: Path, **environment: str) -> Ended:
        """Runs a command to its end."""
        return self.start(arguments, folder, home, **environment).wait()

    def read(self) -> dict[str, Any]:
        """What the process says next."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that starts commands has died")
        return dict(json.loads(line))


def lives(process: psutil.Process) -> bool:
    """Whether a process has not ended; one that has, but that nobody has asked, is still listed."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _quietly(action: Callable[[], object]) -> None:
    with contextlib.suppress(psutil.Error, ProcessLookupError):  # it has just ended
        action()
