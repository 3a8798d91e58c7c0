"""Runs the trials of a study in several processes on this machine, each with its share of the cores."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait

import cloudpickle

from tlresearch.base.errors import UserError
from tlresearch.studies.launch.brief import Brief
from tlresearch.studies.sweeps.trials import Worker

DEATHS = 3  # workers that may die in a row, without a finished trial in between, before the sweep gives up
LOOK_SECONDS = 0.5  # between two looks at the trials that the workers have finished


class _Process:
    """A worker process, and the socket on which it reports how it ended."""

    def __init__(self, brief: Brief, threads: int) -> None:
        ours, theirs = socket.socketpair()
        # torch reads these when it is imported. Without them every process would use all cores.
        environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, "-m", "tlresearch.studies.launch.worker", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, **environment})
        theirs.close()
        self.connection = Connection(ours.detach())
        # By value: a worker cannot import a function of a script or a notebook. Its `recv` reads this as any message.
        self.connection.send_bytes(cloudpickle.dumps(brief))
        self.brief, self.threads = brief, threads

    def outcome(self) -> str | None:
        """Returns the text of the user error with which it ended, or an empty text; ``None`` if it died."""
        try:
            text: str = self.connection.recv()
        except (EOFError, OSError):
            text = ""
            self.process.wait()
            if self.process.returncode:
                return None
        self.stop()
        return text

    def stop(self) -> None:
        """Ends the process after its trial: it sees that the connection is closed."""
        self.connection.close()
        self.process.wait()


def run_trials(worker: Worker) -> None:
    """Runs trials until the study has its total, in `workers` processes.

    If a process dies, another one continues its trial from the checkpoint.

    Raises:
        UserError: If a mistake in the config prevents a trial, or processes keep dying.
    """
    count = min(worker.config.workers or 1, worker.standing().open)
    if count > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        brief = Brief(worker.config, worker.subject, worker.space, worker.parent.run_id)
        with _processes(brief, count, max(1, cores // count)) as processes:
            _watch(worker, processes)
    worker.run_all()  # with one worker, all trials; otherwise trials that workers elsewhere have given back


def _watch(worker: Worker, processes: list[_Process]) -> None:
    """Shows finished trials until each process has ended, and replaces processes that die."""
    deaths = 0
    while processes:
        ready = wait([process.connection for process in processes], LOOK_SECONDS)
        if worker.progress.catch_up():
            deaths = 0
        for process in [process for process in processes if process.connection in ready]:
            error = process.outcome()
            processes.remove(process)
            if error:
                raise UserError(error)
            if error is None:
                deaths += 1
                if deaths >= DEATHS:
                    raise keep_dying(worker.config.name, deaths)
                if worker.standing().open:
                    processes.append(_Process(process.brief, process.threads))
    worker.progress.catch_up()


def keep_dying(sweep: str, deaths: int) -> UserError:
    """Makes the error for the case that starting one more worker would not help."""
    return UserError(
        f"sweep '{sweep}': {deaths} worker processes died one after another; is there memory for workers? "
        "The same command continues"
    )


@contextmanager
def _processes(brief: Brief, count: int, threads: int) -> Iterator[list[_Process]]:
    processes = [_Process(replace(brief, worker=number), threads) for number in range(count)]
    try:
        yield processes
    except (KeyboardInterrupt, SystemExit):
        for process in processes:
            process.process.terminate()  # on SIGTERM each gives its trial back
        raise
    finally:
        # First close all connections, so that the processes end at the same time; then wait for them.
        for process in processes:
            process.connection.close()
        for process in processes:
            process.stop()
