"""`tlresearch demo`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import console_of_leader

EXAMPLE = "tlresearch demo"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--trials", type=int, default=20, help="trials of the sweep (default 20)")


def command(options: argparse.Namespace) -> int:
    """Runs the main job on digits that ship with scikit-learn."""
    from tlresearch.studies.demo import run_demo

    run_demo(console_of_leader(), trials=options.trials)
    return 0
