"""A worker process of a sweep: it gets a brief and runs trials until none is left to begin."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from tlresearch.base.errors import UserError

if TYPE_CHECKING:
    from tlresearch.studies.launch.brief import Brief


def run_trials(brief: Brief, *, connection: Connection | None = None) -> str:
    """Runs trials while some are open; stops after its current trial when the other side of `connection` is gone.

    Returns:
        The text of the user error with which a trial ended; empty if there was none.
    """
    from tlresearch.base.liveness import Identity
    from tlresearch.studies.sweeps import study as studies
    from tlresearch.studies.sweeps.progress import SweepProgress
    from tlresearch.studies.sweeps.trials import Worker
    from tlresearch.tracking.base import SilentRun
    from tlresearch.tracking.courier import courier_process
    from tlresearch.tracking.store import resolve_uri

    def starter_gone() -> bool:
        # Nothing more is sent on the connection, so there is something to read only when it is closed.
        return connection is not None and connection.poll()

    try:
        with studies.quiet_optuna(), courier_process(resolve_uri(brief.subject.tracking.uri)):
            study = studies.open_study(brief.config, brief.space, worker=brief.worker)
            parent = SilentRun(brief.parent, brief.config.name)
            quiet = SweepProgress(None, study, brief.config, 0, all_workers=False)
            identity = Identity.own(brief.post)
            worker = Worker(brief.config, brief.subject, brief.space, study, parent, quiet, identity)
            worker.run_all(wait=False, leave=starter_gone)
    except UserError as error:
        return str(error)
    return ""


def main(arguments: list[str]) -> int:
    """Runs the worker; the argument is the number of its socket."""
    import os

    import torch

    from tlresearch.base.redact import protect_output

    protect_output()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    connection = Connection(int(arguments[0]))
    try:
        connection.send(run_trials(connection.recv(), connection=connection))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the process that started us has ended
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
