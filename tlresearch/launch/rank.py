"""One further process of a run over several devices: rank 0 tells it the run, and it does its share."""

from __future__ import annotations

import sys

from tlresearch.processes import read_brief
from tlresearch.tracking.redact import protect_output


def main() -> int:
    """Takes part in one run."""
    protect_output()
    brief = read_brief()
    from tlresearch.config.load import load_text
    from tlresearch.experiment import Trial, fit

    loaded = load_text(brief["experiment"])
    # Which trial it is matters to rank 0 alone; all must know whether the run ends with the test.
    fit(loaded, trial=None if brief["final"] else Trial(None, loaded.config.name, {}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
