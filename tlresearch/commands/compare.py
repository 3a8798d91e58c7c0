"""`tlresearch compare`."""

from __future__ import annotations

import argparse

from tlresearch.base.errors import UserError
from tlresearch.commands.shared import console_of_leader, store_argument

EXAMPLE = "tlresearch compare 3f2a 9c1b\ntlresearch compare --sweep hymenoptera/lr_x_unfreeze_depth"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run ids, unique beginnings of them, or run names")
    parser.add_argument("--sweep", help="compare the trials of this sweep")
    parser.add_argument("--top", type=int, default=10, help="trials of a sweep that are shown (default 10)")
    store_argument(parser)


def command(options: argparse.Namespace) -> int:
    """Compares recorded runs."""
    from tlresearch.show.terminal import show
    from tlresearch.understand.comparison.compare import compare_runs, compare_sweep

    if bool(options.runs) == bool(options.sweep):
        raise UserError("compare: name two or more runs, or --sweep NAME")
    comparison = compare_sweep(options.sweep, top=options.top) if options.sweep else compare_runs(options.runs)
    show(console_of_leader(), comparison.page)
    return 0
