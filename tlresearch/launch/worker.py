"""A worker process of a sweep: told of the study once, it runs a trial whenever it is told to."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from tlresearch.errors import UserError

if TYPE_CHECKING:
    from tlresearch.launch.local import Brief


def serve(connection: Connection) -> int:
    """Runs trials until the other side hangs up; returns the exit code."""
    brief: Brief = connection.recv()
    from tlresearch import study as studies
    from tlresearch.sweep_progress import SweepProgress
    from tlresearch.tracking.remote import RemoteTracker
    from tlresearch.tracking.silent import SilentRun
    from tlresearch.trials import Worker

    study = studies.open_study(brief.config, brief.space, worker=brief.worker)
    parent = SilentRun(brief.parent, brief.config.name)
    with RemoteTracker() as tracker:
        quiet = SweepProgress(None, study, brief.config, 0)
        worker = Worker(brief.config, brief.base, brief.space, study, parent, quiet, tracker)
        while True:
            try:
                connection.recv()  # "next"
            except (EOFError, OSError):
                return 0
            try:
                number = worker.run_next(began=lambda number: connection.send(("began", number)))
            except UserError as error:
                connection.send(("error", str(error)))
                return 2
            connection.send(("ended", number))


def main(arguments: list[str]) -> int:
    """Serves the socket whose number is given."""
    import os

    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        return serve(Connection(int(arguments[0])))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
