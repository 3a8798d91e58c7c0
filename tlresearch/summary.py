"""The few lines a person reads when a run has ended."""

from __future__ import annotations

from rich.table import Table

from tlresearch.experiment import RunResult


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
