"""`tlresearch compare`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import Outcome, store_argument

EXAMPLE = "tlresearch compare 3f2a 9c1b\ntlresearch compare --sweep hymenoptera/lr_x_unfreeze_depth"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run ids, unique beginnings of them, or run names")
    parser.add_argument("--sweep", help="compare the trials of this sweep")
    parser.add_argument("--top", type=int, default=10, help="trials of a sweep that are shown (default 10)")
    store_argument(parser)


def command(options: argparse.Namespace) -> Outcome:
    """Compares recorded runs."""
    from tlresearch.understand.comparison.compare import compare

    return compare(*options.runs, sweep=options.sweep, top=options.top)
