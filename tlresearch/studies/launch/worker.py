"""A worker process of a sweep: told of the study once, it runs trials until the study has its total."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from tlresearch.base.errors import UserError

if TYPE_CHECKING:
    from tlresearch.studies.launch.brief import Brief


def run_trials(brief: Brief, *, connection: Connection | None = None) -> str:
    """Runs trials while there are some to begin; ends after its trial when the other side of `connection` is gone.

    Returns:
        The mistake of the user's that a trial ended with; empty if all is well.
    """
    from tlresearch.base.liveness import Identity
    from tlresearch.studies.sweeps import study as studies
    from tlresearch.studies.sweeps.progress import SweepProgress
    from tlresearch.studies.sweeps.trials import Worker
    from tlresearch.tracking.base import SilentRun
    from tlresearch.tracking.courier import courier_process
    from tlresearch.tracking.store import resolve_uri

    def alone() -> bool:
        return connection is not None and connection.poll()  # nothing is ever sent: it can only be the end

    try:
        with studies.quiet_optuna(), courier_process(resolve_uri(brief.subject.tracking.uri)):
            study = studies.open_study(brief.config, brief.space, worker=brief.worker)
            parent = SilentRun(brief.parent, brief.config.name)
            quiet = SweepProgress(None, study, brief.config, 0, others=False)
            identity = Identity.own(brief.post)
            worker = Worker(brief.config, brief.subject, brief.space, study, parent, quiet, identity)
            worker.run_all(wait=False, leave=alone)
    except UserError as error:
        return str(error)
    return ""


def main(arguments: list[str]) -> int:
    """Serves the socket whose number is given."""
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
    except BrokenPipeError:  # whoever started us has ended
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
