"""`tlresearch sweep`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import Outcome, console_of_leader, named_yaml

EXAMPLE = "tlresearch sweep photos/\ntlresearch sweep hymenoptera/lr_x_unfreeze_depth trials=40"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("sweep", help="name of a sweep, a YAML file, or a folder of data")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the sweep, such as trials=40")


def command(options: argparse.Namespace) -> Outcome:
    """Runs a sweep, or continues it."""
    from tlresearch.config.load import load_sweep

    console = console_of_leader()
    loaded = load_sweep(named_yaml(options.sweep, "sweeps", console), options.overrides)
    from tlresearch.studies.sweeps.run import run as run_sweep

    return run_sweep(loaded, console=console)
