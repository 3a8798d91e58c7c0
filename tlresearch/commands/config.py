"""`tlresearch config`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import OVERRIDES, Outcome

EXAMPLE = "tlresearch config\ntlresearch config hymenoptera/linear_probe"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("experiment", nargs="?", help="show this experiment with all defaults filled in")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def command(options: argparse.Namespace) -> int | Outcome:
    """Lists every option, or shows an experiment's whole config."""
    if options.experiment:
        from tlresearch.config.load import load_experiment

        print(load_experiment(options.experiment, options.overrides).recorded, end="")
        return 0
    from tlresearch.config.reference import page

    return page()
