"""The main job on digits that ship with scikit-learn: pretrain, transfer with few labels, sweep, compare."""

from __future__ import annotations

import time
from datetime import datetime

from rich.console import Console

from tlresearch.config.load import load_experiment, load_sweep
from tlresearch.run.fit import fit
from tlresearch.run.summary import run_summary
from tlresearch.studies.sweeps.report import print_result
from tlresearch.studies.sweeps.run import run as run_sweep


def run_demo(console: Console, *, trials: int) -> None:
    """Pretrains on the digits 0 to 4, then sweeps the transfer to 5 to 9 with ten labels per class.

    Args:
        console: Where it is shown.
        trials: Trials of the sweep.
    """
    began = time.monotonic()
    console.print("[bold]1. Pretrain[/bold] a small backbone on the digits 0 to 4 (experiments/digits/pretrain.yaml)")
    source = fit(load_experiment("digits/pretrain"), console=console)
    console.print(run_summary(source))
    console.print(
        "[bold]2. Transfer[/bold] it to the digits 5 to 9 with 10 labels per class: learning rate x unfreeze depth "
        "(sweeps/digits/lr_x_unfreeze_depth.yaml)"
    )
    target = load_sweep(
        "digits/lr_x_unfreeze_depth",
        {
            "name": f"digits-demo-{datetime.now():%m%d-%H%M%S}",
            "trials": trials,
            "overrides": {"backbone.checkpoint": source.run_id},
        },
    )
    print_result(console, run_sweep(target, console=console))
    console.print(f"[dim]{time.monotonic() - began:.0f} s in all[/dim]")
