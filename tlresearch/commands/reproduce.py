"""`tlresearch reproduce`."""

from __future__ import annotations

import argparse

from tlresearch.base.errors import UserError
from tlresearch.commands.shared import OVERRIDES, Outcome, console_of_leader, store_argument

EXAMPLE = "tlresearch reproduce hymenoptera/squeezenet\ntlresearch reproduce --all\ntlresearch reproduce 3f2a9c1b"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("what", nargs="?", help="experiment with a reference, or the id or name of a run to repeat")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"{OVERRIDES}; the verdict says so")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME", help="only this variant; repeatable")
    parser.add_argument("--again", action="store_true", help="run again what has finished before")
    parser.add_argument("--all", action="store_true", help="every published experiment; writes REPRODUCED.md")
    parser.add_argument("--slow", action="store_true", help="with --all: also what is marked as slow")
    parser.add_argument("--anyway", action="store_true", help="repeat a run although its data or weights have changed")
    store_argument(parser)


def command(options: argparse.Namespace) -> int | Outcome:
    """Runs a published experiment and holds it against its numbers, or repeats a recorded run."""
    if bool(options.what) == options.all:
        raise UserError("reproduce: name a published experiment or a run id, or give --all")
    console = console_of_leader()
    if options.all and options.overrides:
        raise UserError("reproduce: --all takes no overrides: the scoreboard is of the experiments as they are written")
    from tlresearch.studies.reproduction import reproduce as published

    if options.all:
        results = published.reproduce_all(again=options.again, slow=options.slow, console=console)
        console.print(f"written to {published.PAGE}", highlight=False)
        return max(result.exit_code for result in results)
    return published.reproduce(
        options.what,
        options.overrides,
        variants=options.variant,
        again=options.again,
        anyway=options.anyway,
        console=console,
    )
