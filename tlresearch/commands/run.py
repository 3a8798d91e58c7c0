"""`tlresearch run`."""

from __future__ import annotations

import argparse

from tlresearch.commands.shared import OVERRIDES, Outcome, console_of_leader, named_yaml

EXAMPLE = "tlresearch run photos/\ntlresearch run hymenoptera/linear_probe optimizer.lr=3e-3"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("experiment", help="name of an experiment, a YAML file, or a folder of data")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def command(options: argparse.Namespace) -> Outcome:
    """Runs one experiment, once or with each of its seeds."""
    from tlresearch.config.load import load_experiment

    console = console_of_leader()
    loaded = load_experiment(named_yaml(options.experiment, "experiments", console), options.overrides)
    console.print(f"[bold]{loaded.config.name}[/bold]  {loaded.source}", highlight=False)
    if loaded.config.seeds:
        from tlresearch.studies.seeds import fit_group

        return fit_group(loaded, console=console)
    from tlresearch.run.fit import fit

    return fit(loaded, console=console)
