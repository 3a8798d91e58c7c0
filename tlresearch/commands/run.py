"""`tlresearch run`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tlresearch.commands.shared import OVERRIDES, console_of_leader

if TYPE_CHECKING:
    from tlresearch.run.fit import RunResult
    from tlresearch.studies.seeds import GroupResult

EXAMPLE = "tlresearch run hymenoptera/linear_probe optimizer.lr=3e-3"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("experiment", help="name under experiments/, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def command(options: argparse.Namespace) -> int:
    """Runs one experiment, once or with each of its seeds."""
    from tlresearch.config.load import load_experiment

    loaded = load_experiment(options.experiment, options.overrides)
    console = console_of_leader()
    console.print(f"[bold]{loaded.config.name}[/bold]  {loaded.source}", highlight=False)
    result: RunResult | GroupResult
    if loaded.config.seeds:
        from tlresearch.run.summary import group_summary
        from tlresearch.studies.seeds import fit_group

        result = fit_group(loaded, console=console)
        console.print(group_summary(result))
    else:
        from tlresearch.run.fit import fit
        from tlresearch.run.summary import run_summary

        result = fit(loaded, console=console)
        console.print(run_summary(result))
    console.print(f"MLflow run {result.run_id}; see it with: make ui", highlight=False)
    return 0
