"""`tlresearch verify`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import Outcome, store_argument

EXAMPLE = "tlresearch verify 3f2a9c1b"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("run", help="run id, unique beginning of it, or run name")
    store_argument(parser)


def command(options: argparse.Namespace) -> Outcome:
    """Checks a recorded run without training: artifacts, data, weights, and what its model says."""
    from tlresearch.studies.reproduction.verify import verify

    return verify(options.run)
