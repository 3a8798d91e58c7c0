"""Recorded runs side by side: the params that differ, their metrics, the best highlighted. Needs no torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tlresearch.errors import TrackingError
from tlresearch.tracking.records import children, find_run, study_runs
from tlresearch.tracking.run import PRUNED_MARK, STATE
from tlresearch.tracking.store import Store, compare_url, connect

if TYPE_CHECKING:
    from mlflow.entities import Run
    from rich.table import Table

State = Literal["finished", "pruned", "failed", "killed", "running"]
Direction = Literal["maximize", "minimize"]

_HIDDEN_METRICS = ("system/", "lr/", "trainable/", "selected/")
_HIDDEN_PARAMS = ("tracking.", "name")
_FALLING = ("loss", "error", "perplexity", "seconds", "nll", "ece", "brier", "wer")
_MOST_COLUMNS = 4  # more runs are rows
_MOST_IN_URL = 30


@dataclass(frozen=True)
class Value:
    """A metric of one run: its last value, and the best over its history."""

    last: float
    best: float
    best_step: int


@dataclass(frozen=True)
class Row:
    """One run of a comparison.

    Attributes:
        run_id: Its id.
        name: Its name without the mark of pruned runs.
        state: How it ended.
        params: All its params.
        metrics: Its metrics.
        seconds: How long it took, or has taken so far.
    """

    run_id: str
    experiment_id: str
    name: str
    state: State
    params: Mapping[str, str]
    metrics: Mapping[str, Value]
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        title: What is compared.
        rows: The runs, in the order they were asked for, or best first in a sweep.
        differing: Params whose values differ, with the value of each run; `None` where it has none.
        metrics: Names of the metrics shown.
        directions: Whether more or less is better, by metric.
        url: The comparison in MLflow's UI.
        left_out: Runs of the sweep that `top` cut off.
    """

    title: str
    rows: tuple[Row, ...]
    differing: Mapping[str, tuple[str | None, ...]]
    metrics: tuple[str, ...]
    directions: Mapping[str, Direction]
    url: str
    left_out: int = 0
    best: Mapping[str, str] = field(default_factory=dict)
    """Run id with the best last value, by metric; pruned and failed runs do not compete."""


def compare_runs(runs: Sequence[str], *, uri: str | None = None) -> Comparison:
    """Compares runs.

    Args:
        runs: Run ids, unique beginnings of ids, or run names.
        uri: MLflow tracking URI.

    Raises:
        TrackingError: If a run is not there, or a name stands for several.
    """
    store = connect(uri)
    found = {run.info.run_id: run for run in (find_run(store, text) for text in runs)}
    return _compare(store, f"{len(found)} runs", list(found.values()))


def compare_sweep(sweep: str, *, top: int = 10, uri: str | None = None) -> Comparison:
    """Compares the trials of a sweep, best first; pruned and failed ones come last.

    Args:
        sweep: Name of the study.
        top: Trials shown.
        uri: MLflow tracking URI.

    Raises:
        TrackingError: If the sweep is not there or has no trials.
    """
    store = connect(uri)
    parents = study_runs(store, sweep)
    about = parents[0].data.tags | parents[0].data.params
    metric = about.get("tlresearch.metric") or about.get("objective.metric")
    found = [child for parent in parents for child in children(store, parent.info.run_id)]
    if not found:
        raise TrackingError(f"the sweep '{sweep}' has no trials yet")
    if metric is None:
        return _compare(store, f"sweep {sweep}", found[:top], left_out=len(found[top:]))
    stated = about.get("tlresearch.direction") or about.get("objective.direction")
    named: dict[str | None, Direction] = {"minimize": "minimize", "maximize": "maximize"}
    direction = named.get(stated) or guess_direction(metric)
    found.sort(key=_order(metric, direction))
    return _compare(store, f"sweep {sweep}, by {metric}", found[:top], {metric: direction}, left_out=len(found[top:]))


def _compare(
    store: Store,
    title: str,
    runs: Sequence[Run],
    goal: Mapping[str, Direction] | None = None,
    left_out: int = 0,
) -> Comparison:
    goal = goal or {}
    names = _metric_names(runs, next(iter(goal), None))
    directions = {name: goal.get(name, guess_direction(name)) for name in names}
    rows = tuple(_row(store, run, names, directions) for run in runs)
    ids = [row.run_id for row in rows][:_MOST_IN_URL]
    return Comparison(
        title=title,
        rows=rows,
        differing=_differing(rows),
        metrics=tuple(names),
        directions=directions,
        url=compare_url(store.ui, ids, [row.experiment_id for row in rows]),
        left_out=left_out,
        best={name: best for name in names if (best := _best(rows, name, directions[name]))},
    )


def render(comparison: Comparison) -> Table:
    """The comparison as a table: one column per run, or one row per run where there are many."""
    from rich.table import Table

    table = Table(title=comparison.title, title_justify="left", header_style="bold", row_styles=["", "on grey11"])
    heads = [_head(row) for row in comparison.rows]
    lines: list[tuple[str, list[str]]] = [("state", [_state(row) for row in comparison.rows])]
    lines += [(key, [_param(cell) for cell in cells]) for key, cells in comparison.differing.items()]
    lines += [(name, [_cell(comparison, row, name) for row in comparison.rows]) for name in comparison.metrics]
    lines.append(("duration", [_duration(row.seconds) for row in comparison.rows]))
    if len(comparison.rows) <= _MOST_COLUMNS:
        last_param = next(reversed(list(comparison.differing)), "state")
        table.add_column("", style="bold", no_wrap=True)
        for head in heads:
            table.add_column(head, justify="right", overflow="fold")
        for key, cells in lines:
            table.add_row(key, *cells, end_section=key in ("state", last_param))
    else:
        table.add_column("run", style="bold", no_wrap=True)
        for key, _ in lines:
            table.add_column(key, justify="left" if key == "state" else "right", overflow="fold")
        for index, head in enumerate(heads):
            table.add_row(head.replace("\n", " "), *(cells[index] for _, cells in lines))
    more = f"; {comparison.left_out} more trials are not shown" if comparison.left_out else ""
    table.caption = f"metrics: last value (best over all epochs @ its epoch){more}"
    table.caption_justify = "left"
    return table


def guess_direction(metric: str) -> Direction:
    """Whether more or less of a metric is better, by its name."""
    name = metric.rsplit("/", 1)[-1].lower()
    return "minimize" if any(word in name for word in _FALLING) else "maximize"


def _row(store: Store, run: Run, names: Sequence[str], directions: Mapping[str, Direction]) -> Row:
    known = [name for name in names if name in run.data.metrics]
    ended = run.info.end_time or run.info.start_time
    return Row(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        name=(run.info.run_name or run.info.run_id[:8]).removeprefix(PRUNED_MARK),
        state=_run_state(run),
        params=dict(run.data.params),
        metrics={name: _value(store, run, name, directions[name]) for name in known},
        seconds=max(0.0, (ended - run.info.start_time) / 1000),
    )


def _value(store: Store, run: Run, name: str, direction: Direction) -> Value:
    with store.errors():
        history = store.client.get_metric_history(run.info.run_id, name)
    better = max if direction == "maximize" else min
    points = [(metric.value, metric.step) for metric in history if not math.isnan(metric.value)]
    best, step = better(points, key=lambda point: point[0], default=(math.nan, 0))
    return Value(run.data.metrics[name], best, step)


def _run_state(run: Run) -> State:
    if run.data.tags.get(STATE) == "pruned":
        return "pruned"
    states: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
    return states.get(run.info.status, "running")


def _order(metric: str, direction: Direction) -> Callable[[Run], tuple[bool, bool, float]]:
    sign = -1 if direction == "maximize" else 1

    def key(run: Run) -> tuple[bool, bool, float]:
        value = run.data.metrics.get(metric, math.nan)
        missing = math.isnan(value)
        return (_run_state(run) != "finished", missing, 0.0 if missing else sign * value)

    return key


def _metric_names(runs: Sequence[Run], first: str | None) -> list[str]:
    names = {name for run in runs for name in run.data.metrics if not name.startswith(_HIDDEN_METRICS)}
    splits = ("test", "val", "train")
    ordered = sorted(names, key=lambda name: (_position(splits, name.split("/")[0]), "loss" in name, name))
    return sorted(ordered, key=lambda name: name != first)


def _position(words: Sequence[str], word: str) -> int:
    return words.index(word) if word in words else len(words)


def _differing(rows: Sequence[Row]) -> dict[str, tuple[str | None, ...]]:
    keys = sorted({key for row in rows for key in row.params})
    columns = {key: tuple(row.params.get(key) for row in rows) for key in keys}
    return {key: cells for key, cells in columns.items() if len(set(cells)) > 1 and not key.startswith(_HIDDEN_PARAMS)}


def _best(rows: Sequence[Row], name: str, direction: Direction) -> str | None:
    sign = 1 if direction == "maximize" else -1
    values = [
        (sign * row.metrics[name].last, row.run_id)
        for row in rows
        if name in row.metrics and row.state == "finished" and not math.isnan(row.metrics[name].last)
    ]
    values.sort(reverse=True)
    # A tie has no best.
    return values[0][1] if len(values) > 1 and values[0][0] > values[1][0] else None


def _head(row: Row) -> str:
    from rich.markup import escape

    return f"{escape(row.name)}\n[dim]{row.run_id[:8]}[/dim]"


def _state(row: Row) -> str:
    colour = {"finished": "green", "pruned": "yellow", "failed": "red", "killed": "red", "running": "cyan"}[row.state]
    return f"[{colour}]{row.state}[/{colour}]"


def _cell(comparison: Comparison, row: Row, name: str) -> str:
    if name not in row.metrics:
        return "[dim]-[/dim]"
    value = row.metrics[name]
    text = f"{value.last:.4g}"
    if not math.isclose(value.best, value.last, rel_tol=1e-9) and not math.isnan(value.best):
        text += f" [dim]({value.best:.4g} @ {value.best_step})[/dim]"
    return f"[bold green]★ {text}[/bold green]" if comparison.best.get(name) == row.run_id else text


def _param(cell: str | None) -> str:
    from rich.markup import escape

    if cell is None:
        return "[dim]-[/dim]"
    with contextlib.suppress(ValueError):
        cell = cell if cell.lstrip("-").isdigit() else f"{float(cell):.4g}"
    return escape(cell if len(cell) <= 60 else f"{cell[:57]}...")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
