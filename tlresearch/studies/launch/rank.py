"""One further process of a run over several devices: rank 0 tells it the run, and it does its share."""

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
    # Which trial it is matters to rank 0 alone; all must know whether the run ends with the test.
    fit(loaded, role=Role(loaded.config.name, test=brief["test"]))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is recorded, by rank 0. Python's own end may be aborted by threads of torch's collectives, which rank 0
    # has left at some moment of its own.
    os._exit(code)
