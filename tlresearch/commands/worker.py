"""`tlresearch worker`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import console_of_leader

EXAMPLE = "tlresearch worker digits/lr_x_unfreeze_depth storage=postgresql://me@database/optuna"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("sweep", help="name under sweeps/, or a YAML file; the same for every worker")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values of the sweep, the same for all")


def command(options: argparse.Namespace) -> int:
    """Joins a sweep as one of any number of workers, on any machine, until it has all its trials."""
    from tlresearch.config.load import load_sweep

    loaded = load_sweep(options.sweep, options.overrides)
    console = console_of_leader()
    from tlresearch.studies.sweeps.run import work

    count = work(loaded, console=console)
    console.print(
        f"  this worker ran {count} trials; all {loaded.config.trials} have ended\n"
        f"  tlresearch sweep {options.sweep}, with the same values, confirms the best and draws the figures",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0
