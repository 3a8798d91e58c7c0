"""Runs the trials of a study in several processes of this machine, each on its share of the cores."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait

from tlresearch.base.errors import UserError
from tlresearch.studies.launch.brief import Brief
from tlresearch.studies.sweeps.trials import Worker

DEATHS = 3  # of workers, one after another and without a finished trial between them
LOOK_SECONDS = 0.5  # between two looks at what the workers have finished


class _Process:
    """A worker process, and the socket on which it says how it ended."""

    def __init__(self, brief: Brief, threads: int) -> None:
        ours, theirs = socket.socketpair()
        # Torch reads these when it is imported; it would otherwise take all cores in every process.
        environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, "-m", "tlresearch.studies.launch.worker", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, **environment})
        theirs.close()
        self.connection = Connection(ours.detach())
        self.connection.send(brief)
        self.brief, self.threads = brief, threads

    def outcome(self) -> str | None:
        """The mistake of the user's it ended with, or empty; ``None`` if it was killed."""
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
        """Ends the process after what it is doing."""
        self.connection.close()
        self.process.wait()


def run_trials(worker: Worker) -> None:
    """Runs trials until the study has its total, in as many processes as the sweep asks for.

    A process that dies takes no trial with it: the trial goes on in another one, from its checkpoint.

    Raises:
        UserError: If a trial cannot be run because of a mistake of the user's, or processes keep dying.
    """
    count = min(worker.config.workers or 1, worker.standing().open)
    if count > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        brief = Brief(worker.config, worker.subject, worker.space, worker.parent.run_id)
        with _processes(brief, count, max(1, cores // count)) as processes:
            _watch(worker, processes)
    worker.run_all()  # all of them if one worker is enough; else what workers elsewhere have given back


def _watch(worker: Worker, processes: list[_Process]) -> None:
    """Shows what the processes finish until each has ended, and replaces those that die."""
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
    """What is said when starting one more worker would not help."""
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
            process.process.terminate()  # each gives its trial back
        raise
    finally:
        for process in processes:
            process.connection.close()  # all of them first, so that they end at the same time
        for process in processes:
            process.stop()
