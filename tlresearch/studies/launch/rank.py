"""A rank above 0 of a run over several devices: it gets the config from rank 0 and takes part in the run."""

from __future__ import annotations

import os
import sys

from tlresearch.base.redact import protect_output
from tlresearch.run.devices.processes import read_brief


def main() -> int:
    """Takes part in one run."""
    protect_output()
    brief = read_brief()
    from tlresearch.config.load import load_text
    from tlresearch.run.fit import Role, fit

    loaded = load_text(brief["experiment"])
    # Only rank 0 needs to know the trial. All ranks must know whether the run ends with the test.
    fit(loaded, role=Role(loaded.config.name, test=brief["test"]))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Rank 0 has recorded everything, and may leave torch's collectives at any time. Threads of these collectives can
    # then abort a normal exit of Python, so exit without one.
    os._exit(code)
