"""The few lines a person reads when a run has ended."""

from __future__ import annotations

from rich.table import Table

from tlresearch.experiment import RunResult
from tlresearch.seeds import GroupResult


def run_summary(result: RunResult) -> Table:
    """Metrics of the selected epoch, one row per split."""
    splits = [s for s in ("train", "val", "test") if any(name.startswith(f"{s}/") for name in result.metrics)]
    names = list(dict.fromkeys(name.partition("/")[2] for name in result.metrics))
    table = Table(
        title=f"{result.name}: {result.status}, epoch {result.epoch + 1} of {len(result.history)}, "
        f"{result.seconds:.1f} s",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for split in splits:
        values = [result.metrics.get(f"{split}/{name}") for name in names]
        table.add_row(split, *("" if value is None else f"{value:.4f}" for value in values))
    return table


def group_summary(result: GroupResult) -> Table:
    """Mean, spread and interval of each metric of a group."""
    seeds = ", ".join(str(run.seed) for run in result.runs)
    table = Table(
        title=f"{result.name}: {len(result.runs)} seeds ({seeds}), {result.seconds:.1f} s",
        title_justify="left",
        title_style="bold",
        caption="std over seeds; low and high: 95 % bootstrap interval of the mean",
        caption_justify="left",
    )
    table.add_column("")
    for column in ("mean", "std", "low", "high"):
        table.add_column(column, justify="right")
    for name, found in result.metrics.items():
        table.add_row(name, *(f"{value:.4f}" for value in (found.mean, found.std, found.low, found.high)))
    return table
