"""The few lines a person reads when a run has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from tlresearch.run.fit import RunResult
from tlresearch.shift.distances import DISTANCES
from tlresearch.studies.seeds import GroupResult

SPLITS = ("train", "val", "test")
TOLD = ("accuracy", "calibration_error", "dice", "f1", "word_error_rate", "map")
"""Metrics of further test sets that are shown beside the distances."""
MOST_COLUMNS = 8
"""Metrics that fit side by side into a terminal."""


def run_summary(result: RunResult) -> RenderableType:
    """Metrics of the selected epoch, one row per split and the gap between two; below a value its interval, if any.

    A second table has a row for each further test set.
    """
    splits = [s for s in SPLITS if any(name.startswith(f"{s}/") for name in result.metrics)]
    own = [name.partition("/") for name in result.metrics]
    names = list(dict.fromkeys(name for split, _, name in own if split in SPLITS))
    watched = [name for name in names if any(f"{split}/{name}" in result.metrics for split in ("train", "val"))]
    # What only the test has beside a value, such as its interval or each class's share, is in MLflow.
    names = [name for name in names if name in watched or not name.startswith(tuple(f"{w}_" for w in watched))]
    table = Table(
        title=f"{result.name}: {result.status}, epoch {result.epoch + 1} of {len(result.history)}, "
        f"{result.seconds:.1f} s",
        title_justify="left",
        title_style="bold",
    )
    rows: dict[str, list[str]] = {}
    for split in splits:
        rows[split] = [_cell(result.metrics, f"{split}/{name}") for name in names]
        if split == "val":
            gaps = [result.metrics.get(f"gap/{name}") for name in names]
            rows["train - val"] = ["" if gap is None else f"[dim]{gap:+.4f}[/dim]" for gap in gaps]
    shown = [name.replace("_", " ") for name in names]
    if len(names) > MOST_COLUMNS:  # the other way round, or nothing could be read
        columns, lines = list(rows), {name: [row[at] for row in rows.values()] for at, name in enumerate(shown)}
    else:
        columns, lines = shown, rows
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for label, cells in lines.items():
        table.add_row(label, *cells)
    shifted = _shift_table(result.metrics, names)
    return Group(table, shifted) if shifted else table


def _shift_table(metrics: Mapping[str, float], names: Sequence[str]) -> Table | None:
    """One row per further test set: the same metrics, what was lost, and how far the last stage's features are off."""
    found = [key.split("/") for key in metrics if key.startswith("shift/")]
    if not found:
        return None
    names = [name for name in names if name in TOLD] or list(names[:2])  # the others are in MLflow
    table = Table(
        title="further test sets",
        title_justify="left",
        title_style="bold",
        caption="drop: what was lost against the source\ndistances: between the features behind the last stage",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("", overflow="fold", min_width=max(len(key[1]) for key in found))
    distances = [name for name in DISTANCES if name != "frechet"]  # whose size says little by itself
    for name in (*names, "drop", *distances):
        table.add_column("\n".join(name.split("_")), justify="right", no_wrap=True)
    for one in dict.fromkeys(key[1] for key in found):
        cells = [_cell(metrics, f"shift/{one}/{name}") for name in names]
        moved = [f"{metrics[f'shift/{one}/{distance}']:.3g}" for distance in distances]
        table.add_row(one, *cells, f"{metrics[f'shift/{one}/drop']:+.4f}", *moved)
    return table


def _cell(metrics: Mapping[str, float], key: str) -> str:
    if key not in metrics:
        return ""
    low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
    interval = "" if low is None or high is None else f"\n[dim]{low:.3f} to {high:.3f}[/dim]"
    return f"{metrics[key]:.4f}{interval}"


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
        if name.count("/") > 2:
            continue  # distances stage by stage are in MLflow
        table.add_row(name, *(f"{value:.4f}" for value in (found.mean, found.std, found.low, found.high)))
    return table
