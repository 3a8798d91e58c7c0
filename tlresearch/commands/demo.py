"""`tlresearch demo`: pretrain on some digits, transfer to the others with few labels, sweep, compare."""

from __future__ import annotations

import argparse
import time
from datetime import datetime

from tlresearch.commands.shared import console_of_leader

EXAMPLE = "tlresearch demo"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("--trials", type=int, default=20, help="trials of the sweep (default 20)")


def command(options: argparse.Namespace) -> int:
    """Runs the main job on digits that ship with scikit-learn."""
    from tlresearch.config.load import load_experiment, load_sweep
    from tlresearch.run.fit import fit
    from tlresearch.show.terminal import show
    from tlresearch.studies.sweeps.run import run as run_sweep

    console = console_of_leader()
    began = time.monotonic()
    console.print("[bold]1. Pretrain[/bold] a small backbone on the digits 0 to 4 (experiments/digits/pretrain.yaml)")
    source = fit(load_experiment("digits/pretrain"), console=console)
    show(console, source.page)
    console.print(
        "[bold]2. Transfer[/bold] it to the digits 5 to 9 with 10 labels per class: learning rate x unfreeze depth "
        "(sweeps/digits/lr_x_unfreeze_depth.yaml)"
    )
    target = load_sweep(
        "digits/lr_x_unfreeze_depth",
        {
            "name": f"digits-demo-{datetime.now():%m%d-%H%M%S}",
            "trials": options.trials,
            "overrides": {"backbone.checkpoint": source.run_id},
        },
    )
    show(console, run_sweep(target, console=console).page)
    console.print(f"[dim]{time.monotonic() - began:.0f} s in all[/dim]")
    return 0
