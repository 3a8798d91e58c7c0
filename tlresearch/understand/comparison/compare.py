"""Recorded runs side by side: the params that differ, their metrics, the best starred, and the page of it."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from tlresearch.base.direction import Direction, Directions, direction_of
from tlresearch.base.errors import TrackingError
from tlresearch.config.catalogue import TASKS
from tlresearch.show.elements import Better, Cell, Column, Element, Entry, Facts, Note, Table, Tone, typed
from tlresearch.show.metrics import folded, without_ends
from tlresearch.show.page import Page, Shown, page_of
from tlresearch.tracking import records
from tlresearch.tracking.addresses import compare_url
from tlresearch.tracking.calls import STATE
from tlresearch.tracking.groups import SeedRun, finished, is_group
from tlresearch.tracking.records import children, find_run, study_runs
from tlresearch.tracking.run import PRUNED_MARK
from tlresearch.tracking.store import Store, connect
from tlresearch.understand.comparison.significance import LEVEL, Paired, paired_tests

if TYPE_CHECKING:
    from mlflow.entities import Run

    from tlresearch.base.statistics import Summary

State = Literal["finished", "pruned", "failed", "killed", "running"]

_HIDDEN_METRICS = (
    "system/",
    "time/",
    "lr/",
    "trainable/",
    "gradient_norm/",
    "selected/",
    "mean/",
    "std/",
    "low/",
    "high/",
)
_HIDDEN_PARAMS = ("tracking.", "name", "group.")
_MOST_IN_URL = 30
_MOST_NOTED = 4  # of more runs only the last value of each metric is shown, without the best one beside it
_BETTER: Mapping[Direction | None, Better] = {"min": "lower", "max": "higher"}
_TONES: Mapping[State, Tone] = {
    "finished": "good",
    "pruned": "warning",
    "failed": "bad",
    "killed": "bad",
    "running": "plain",
}


@dataclass(frozen=True)
class Value:
    """A metric of one run: its last value, and the best over its history; of a group its mean over the seeds."""

    last: float
    best: float
    best_step: int
    over_seeds: Summary | None = None
    by_seed: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One run of a comparison, or a group of seeds.

    Attributes:
        run_id: Its id.
        name: Its name without the mark of pruned runs.
        state: How it ended.
        params: All its params.
        metrics: Its metrics.
        seconds: How long it took, or has taken so far.
        members: Run of each seed; empty unless it is a group.
        data: Name and fingerprint of its data; empty if it recorded none.
    """

    run_id: str
    experiment_id: str
    name: str
    state: State
    params: Mapping[str, str]
    metrics: Mapping[str, Value]
    seconds: float
    members: Mapping[int, str] = field(default_factory=dict)
    data: str = ""


@dataclass(frozen=True)
class Comparison(Shown):
    """Runs side by side.

    Attributes:
        title: What is compared.
        rows: The runs, in the order they were asked for, or best first in a sweep.
        differing: Params whose values differ, with the value of each run; `None` where it has none.
        metrics: Names of the metrics shown.
        directions: Whether more or less is better, of the metrics whose task said so.
        url: The comparison in MLflow's UI.
        left_out: Runs of the sweep that `top` cut off.
        tests: Paired tests between the best run, or the first, and the others.
    """

    title: str
    rows: tuple[Row, ...]
    differing: Mapping[str, tuple[str | None, ...]]
    metrics: tuple[str, ...]
    directions: Mapping[str, Direction]
    url: str
    left_out: int = 0
    tests: tuple[Paired, ...] = ()
    best: Mapping[str, str] = field(default_factory=dict)
    """Run id with the best last value, by metric; pruned and failed runs do not compete."""

    @property
    def page(self) -> Page:
        """The runs with what differs, below them whether the differences are more than noise."""
        values = {
            name: min(row.metrics[name].last for row in self.rows if name in row.metrics) for name in self.metrics
        }
        kept = without_ends(values)  # ends of intervals stand beside their values in the report of a run
        names, folds = folded({name: values[name] for name in kept}, keep=next(iter(self.metrics), ""))
        elements: list[Element] = [self._table(names), *(Note(line, "faint") for line in folds)]
        elements += [_noise(self.tests)] if self.tests else []
        return page_of("", *elements, Facts(((f"side by side in the UI ({typed('ui')})", self.url),)))

    def _table(self, names: Sequence[str]) -> Table:
        """A row per run; the most telling columns first."""
        noted = len(self.rows) <= _MOST_NOTED
        columns: dict[str, tuple[Column, list[Entry]]] = {}
        if any(row.state != "finished" for row in self.rows):
            columns["state"] = Column("state"), [Cell(row.state, tone=_TONES[row.state]) for row in self.rows]
        for name in names:
            better = _BETTER.get(self.directions.get(name))
            columns[name] = Column(name, ".4g", better=better), [self._metric(row, name, noted) for row in self.rows]
        # What the search varied comes before what sets a baseline apart from all trials.
        varied = sorted(self.differing, key=lambda key: -len(set(self.differing[key])))
        params = {
            key: (Column(self._short(key), align="right"), [_param(cell) for cell in self.differing[key]])
            for key in varied
        }
        # The first metric is what the runs are compared by; what they differ in explains it.
        first = [key for key in columns if key == "state" or key == next(iter(names), "")]
        ordered = {key: columns.pop(key) for key in first} | params | columns
        ordered["duration"] = Column("duration", align="right"), [_duration(row.seconds) for row in self.rows]
        meaning = ["last value" + (" (best over all epochs @ its epoch)" if noted else "")]
        if any(row.members for row in self.rows):
            interval = " (95 % bootstrap interval of the mean)" if noted else ""
            meaning.append(f"of a group mean ± standard deviation over its seeds{interval}")
        if self.left_out:
            meaning.append(f"{self.left_out} more trials are not shown")
        return Table(
            (Column("run"), Column("id", align="right"), *(column for column, _ in ordered.values())),
            tuple(
                (row.name, row.run_id[:8], *(entries[number] for _, entries in ordered.values()))
                for number, row in enumerate(self.rows)
            ),
            title=self.title,
            note=f"metrics: {'; '.join(meaning)}",
        )

    def _metric(self, row: Row, name: str, noted: bool) -> Entry:
        if name not in row.metrics:
            return None
        value, starred = row.metrics[name], self.best.get(name) == row.run_id
        if value.over_seeds is not None:
            seeds = value.over_seeds
            # Two digits of the spread: more of the mean would say nothing.
            digits = min(6, max(0, 1 - math.floor(math.log10(seeds.std)))) if seeds.std > 0 else 4
            note = f"{seeds.low:.{digits}f} to {seeds.high:.{digits}f}" if noted else ""
            return Cell(seeds.mean, seeds.std, note, starred=starred, format=f".{digits}f")
        elsewhere = not math.isclose(value.best, value.last, rel_tol=1e-9) and not math.isnan(value.best)
        return Cell(
            value.last, note=f"{value.best:.4g} @ {value.best_step}" if noted and elsewhere else "", starred=starred
        )

    def _short(self, key: str) -> str:
        """A param without its section, where no other ends alike."""
        last = key.rpartition(".")[2]
        return last if sum(param.rpartition(".")[2] == last for param in self.differing) == 1 else key


def _noise(tests: Sequence[Paired]) -> Table:
    """A row per paired test: the difference, its interval, how likely it is by chance, and what to make of it."""
    rows: list[tuple[Entry, ...]] = []
    for paired in tests:
        test, names = paired.test, f"{paired.first} - {paired.second}"
        if test is None:
            rows.append((names, paired.metric, "", "", "", Cell(f"not tested: {paired.reason}", tone="faint")))
            continue
        difference = Cell(test.difference, note=f"{test.low:+.4f} to {test.high:+.4f}")
        words = Cell("within noise") if paired.within_noise else Cell("more than noise", tone="strong")
        rows.append((names, paired.metric, difference, test.p_value, paired.over, words))
    columns = (
        Column("runs"),
        Column("difference of"),
        Column("mean (95 %)", "+.4f"),
        Column("p", ".2g"),
        Column("over"),
        Column("verdict"),
    )
    notes = dict.fromkeys(paired.note for paired in tests if paired.note)
    return Table(columns, tuple(rows), title=f"more than noise? (p below {LEVEL:g})", note="; ".join(notes)).filled()


def _param(text: str | None) -> Entry:
    if text is None:
        return None
    if re.fullmatch("[0-9a-f]{32}", text):
        return text[:8]  # a run's id, as everywhere in tables
    with contextlib.suppress(ValueError):
        text = text if text.lstrip("-").isdigit() else f"{float(text):.4g}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def compare_runs(runs: Sequence[str], *, uri: str | None = None) -> Comparison:
    """Compares runs.

    Args:
        runs: Run ids, unique beginnings of ids, or run names; that of a group of seeds stands for all of them.
        uri: MLflow tracking URI.

    Raises:
        TrackingError: If a run is not there, or a name stands for several.
    """
    store = connect(uri)
    found = {run.info.run_id: run for run in (find_run(store, text) for text in runs)}
    comparison = _compare(store, f"{len(found)} runs", list(found.values()))
    return replace(comparison, tests=paired_tests(store, comparison))


def compare_sweep(sweep: str, *, top: int = 10, uri: str | None = None) -> Comparison:
    """Compares the trials of a sweep, best first; confirmed groups come before them, pruned and failed ones last.

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
    named: dict[str | None, Direction] = {"minimize": "min", "maximize": "max"}
    direction = named.get(stated) or direction_of(metric, _declared(found[0])) or "max"
    found.sort(key=_order(metric, direction))
    comparison = _compare(
        store, f"sweep {sweep}, by {metric}", found[:top], {metric: direction}, left_out=len(found[top:])
    )
    # Single trials of one seed are no ground for a test: that is what `confirm` is for.
    groups = replace(comparison, rows=tuple(row for row in comparison.rows if row.members), best={})
    return replace(comparison, tests=paired_tests(store, groups))


def _compare(
    store: Store,
    title: str,
    runs: Sequence[Run],
    goal: Mapping[str, Direction] | None = None,
    left_out: int = 0,
) -> Comparison:
    goal = goal or {}
    groups = {run.info.run_id: finished(store, run.info.run_id) for run in runs if is_group(run)}
    firsts = {group: _first(store, seeds) for group, seeds in groups.items() if seeds}
    recorded = [
        *(run.data.metrics for run in runs),
        *(one.metrics for seeds in groups.values() for one in seeds.values()),
    ]
    names = _metric_names(recorded, next(iter(goal), None))
    declared = {name: way for run in (*runs, *firsts.values()) for name, way in _declared(run).items()}
    stated = {name: goal.get(name) or direction_of(name, declared) for name in names}
    directions = {name: direction for name, direction in stated.items() if direction}
    rows = tuple(
        _group_row(run, groups[run.info.run_id], firsts[run.info.run_id], names)
        if groups.get(run.info.run_id)
        else _row(store, run, names, directions)
        for run in runs
    )
    ids = [row.run_id for row in rows][:_MOST_IN_URL]
    return Comparison(
        title=title,
        rows=rows,
        differing=_differing(rows),
        metrics=tuple(names),
        directions=directions,
        url=compare_url(store.ui, ids, [row.experiment_id for row in rows]),
        left_out=left_out,
        best={name: best for name, way in directions.items() if (best := _best(rows, name, way))},
    )


def _declared(run: Run) -> Directions:
    """What a run's task declared of its metrics; of a run that did not record it yet, what the task says today."""
    recorded = run.data.tags.get(records.DIRECTIONS)
    if recorded is not None:
        declared: Directions = json.loads(recorded)
        return declared
    name = run.data.params.get("task.name", "")
    if name not in TASKS:
        return {}
    from tlresearch.tasks.build import find_task  # imports torch, which a comparison does without otherwise

    return find_task(name).directions


def _first(store: Store, seeds: Mapping[int, SeedRun]) -> Run:
    with store.errors():
        return store.client.get_run(next(iter(seeds.values())).run_id)


def _row(store: Store, run: Run, names: Sequence[str], directions: Mapping[str, Direction]) -> Row:
    known = [name for name in names if name in run.data.metrics]
    ended = run.info.end_time or run.info.start_time
    return Row(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        name=(run.info.run_name or run.info.run_id[:8]).removeprefix(PRUNED_MARK),
        state=_run_state(run),
        params={} if is_group(run) else dict(run.data.params),
        metrics={name: _value(store, run, name, directions.get(name)) for name in known},
        seconds=max(0.0, (ended - run.info.start_time) / 1000),
        data=run.data.tags.get("tlresearch.data", ""),
    )


def _group_row(group: Run, seeds: Mapping[int, SeedRun], first: Run, names: Sequence[str]) -> Row:
    """A group as one row: the mean of each metric over its finished seeds, and the params that the seeds share."""
    from tlresearch.base.statistics import summary

    runs = list(seeds.values())
    metrics = {}
    for name in names:
        by_seed = {run.seed: run.metrics[name] for run in runs if name in run.metrics}
        if len(by_seed) == len(runs):
            found = summary(list(by_seed.values()))
            metrics[name] = Value(found.mean, found.mean, 0, found, by_seed)
    shared = {key: value for key, value in first.data.params.items() if key not in ("seed", "seeds")}
    return Row(
        run_id=group.info.run_id,
        experiment_id=group.info.experiment_id,
        name=group.info.run_name or group.info.run_id[:8],
        state=_run_state(group),
        params={**shared, "seeds": " ".join(map(str, sorted(seeds)))},
        metrics=metrics,
        seconds=sum(run.seconds for run in runs),
        members={seed: seeds[seed].run_id for seed in sorted(seeds)},
        data=first.data.tags.get("tlresearch.data", ""),
    )


def _value(store: Store, run: Run, name: str, direction: Direction | None) -> Value:
    if direction is None:  # nobody said which of its values is the best one
        return Value(run.data.metrics[name], math.nan, 0)
    with store.errors():
        history = store.client.get_metric_history(run.info.run_id, name)
    better = max if direction == "max" else min
    points = [(metric.value, metric.step) for metric in history if not math.isnan(metric.value)]
    best, step = better(points, key=lambda point: point[0], default=(math.nan, 0))
    return Value(run.data.metrics[name], best, step)


def _run_state(run: Run) -> State:
    if run.data.tags.get(STATE) == "pruned":
        return "pruned"
    states: dict[str, State] = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "killed"}
    return states.get(run.info.status, "running")


def _order(metric: str, direction: Direction) -> Callable[[Run], tuple[bool, bool, bool, float]]:
    sign = -1 if direction == "max" else 1

    def key(run: Run) -> tuple[bool, bool, bool, float]:
        group = is_group(run)
        value = run.data.metrics.get(f"mean/{metric}" if group else metric, math.nan)
        missing = math.isnan(value)
        return (_run_state(run) != "finished", not group, missing, 0.0 if missing else sign * value)

    return key


def _metric_names(recorded: Sequence[Mapping[str, float]], first: str | None) -> list[str]:
    names = {name for metrics in recorded for name in metrics if not name.startswith(_HIDDEN_METRICS)}
    names = {name for name in names if "/stages/" not in name}  # distances of shifted sets stage by stage
    splits = ("test", "val", "train")
    ordered = sorted(names, key=lambda name: (_position(splits, name.split("/")[0]), "loss" in name, name))
    return sorted(ordered, key=lambda name: name != first)


def _position(words: Sequence[str], word: str) -> int:
    return words.index(word) if word in words else len(words)


def _differing(rows: Sequence[Row]) -> dict[str, tuple[str | None, ...]]:
    known = [row for row in rows if row.params]  # a group none of whose seeds has finished has none
    keys = sorted({key for row in known for key in row.params if not key.startswith(_HIDDEN_PARAMS)})
    differing = [key for key in keys if len({row.params.get(key) for row in known}) > 1]
    return {key: tuple(row.params.get(key) for row in rows) for key in differing}


def _best(rows: Sequence[Row], name: str, direction: Direction) -> str | None:
    sign = 1 if direction == "max" else -1
    values = [
        (sign * row.metrics[name].last, row.run_id)
        for row in rows
        if name in row.metrics and row.state == "finished" and not math.isnan(row.metrics[name].last)
    ]
    values.sort(reverse=True)
    # A tie has no best.
    return values[0][1] if len(values) > 1 and values[0][0] > values[1][0] else None
