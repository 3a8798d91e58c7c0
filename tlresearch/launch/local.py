"""Runs the trials of a study in several processes of this machine, each on its share of the cores."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait

from tlresearch import study as studies
from tlresearch.config.load import Loaded
from tlresearch.config.schema import ExperimentConfig
from tlresearch.config.sweep_schema import SpaceConfig, SweepConfig
from tlresearch.errors import UserError
from tlresearch.trials import Worker

DEATHS = 3  # of workers, one after another and without a finished trial between them


@dataclass(frozen=True)
class Brief:
    """What a worker process is told: everything about the study but its next trial."""

    config: SweepConfig
    base: Loaded[ExperimentConfig]
    space: dict[str, SpaceConfig]
    parent: str
    threads: int
    worker: int = 0


class _Process:
    """A worker process and the socket on which it is told to run a trial, and says what became of it."""

    def __init__(self, brief: Brief) -> None:
        ours, theirs = socket.socketpair()
        # Torch reads these when it is imported; it would otherwise take all cores in every process.
        threads = {name: str(brief.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, "-m", "tlresearch.launch.worker", str(theirs.fileno())]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, **threads})
        theirs.close()
        self.connection = Connection(ours.detach())
        self.connection.send(brief)
        self.brief = brief
        self.trial: int | None = None

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
    count = min(worker.config.workers, worker.left())
    if count <= 1:
        while worker.left() > 0:
            worker.run_next()
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    brief = Brief(worker.config, worker.base, worker.space, worker.parent.run_id, max(1, cores // count))
    with _processes(brief, count) as processes:
        _hand_out(worker, processes)


def _hand_out(worker: Worker, processes: list[_Process]) -> None:
    """Lets each process run one trial after another; counts those under way, so that the total is met exactly."""
    left, deaths = worker.left(), 0
    for process in processes:
        process.connection.send("next")
        left -= 1
    busy = list(processes)
    while busy:
        ready = wait([process.connection for process in busy])
        for process in [process for process in busy if process.connection in ready]:
            try:
                kind, value = process.connection.recv()
            except (EOFError, OSError):
                deaths += 1
                left += 1  # it is tried again, under another number
                _replace(worker, process, processes)
                if deaths >= DEATHS:
                    raise UserError(
                        f"sweep '{worker.config.name}': {deaths} worker processes died one after another; "
                        "is there memory for workers? The same command continues"
                    ) from None
                busy[busy.index(process)] = process = processes[-1]
                kind, value = "again", None
            if kind == "began":
                process.trial = value
                continue
            if kind == "error":
                raise UserError(value)
            if kind == "ended":
                deaths, process.trial = 0, None
                worker.progress.trial_ended(worker.study, worker.study.get_trials(deepcopy=False)[value])
            if left > 0:
                process.connection.send("next")
                left -= 1
            else:
                busy.remove(process)


def _replace(worker: Worker, dead: _Process, processes: list[_Process]) -> None:
    """Starts a process for one that died, and gives its trial another try."""
    processes.remove(dead)
    dead.stop()
    if dead.trial is not None:
        studies.requeue(worker.study, dead.trial)
    processes.append(_Process(dead.brief))


@contextmanager
def _processes(brief: Brief, count: int) -> Iterator[list[_Process]]:
    processes = [_Process(replace(brief, worker=number)) for number in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            process.stop()
