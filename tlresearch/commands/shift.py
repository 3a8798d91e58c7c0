"""`tlresearch shift`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tlresearch.commands.shared import OVERRIDES, console_of_leader

EXAMPLE = "tlresearch shift office_caltech10/all_pairs"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("experiment", help="experiment whose variants name further test sets in data.shift")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    parser.add_argument("--write", type=Path, metavar="PAGE", help="also put the tables into this Markdown page")


def command(options: argparse.Namespace) -> int:
    """Runs every variant of an experiment on its shifted sets and shows the table of all pairs."""
    from tlresearch.show.terminal import show
    from tlresearch.studies.shift_pairs import as_markdown, fit_pairs, write
    from tlresearch.tracking.provenance import collect

    console = console_of_leader()
    result = fit_pairs(options.experiment, options.overrides, console=console)
    show(console, result.page)
    if options.write:
        write(options.write, as_markdown(result, collect(sys.argv)))
        console.print(f"written to {options.write}", highlight=False)
    return 0
