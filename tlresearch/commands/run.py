"""`tlresearch run`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import OVERRIDES, console_of_leader

EXAMPLE = "tlresearch run hymenoptera/linear_probe optimizer.lr=3e-3"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("experiment", help="name under experiments/, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def command(options: argparse.Namespace) -> int:
    """Runs one experiment, once or with each of its seeds."""
    from tlresearch.config.load import load_experiment
    from tlresearch.show.terminal import show

    loaded = load_experiment(options.experiment, options.overrides)
    console = console_of_leader()
    console.print(f"[bold]{loaded.config.name}[/bold]  {loaded.source}", highlight=False)
    if loaded.config.seeds:
        from tlresearch.studies.seeds import fit_group

        show(console, fit_group(loaded, console=console).page)
    else:
        from tlresearch.run.fit import fit

        show(console, fit(loaded, console=console).page)
    return 0
