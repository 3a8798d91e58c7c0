"""Recorded runs side by side: the params that differ, their metrics, the best starred, and the page of it."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tlresearch.base.direction import Direction, Directions, direction_of
from tlresearch.base.errors import TrackingError, UserError
from tlresearch.config.catalogue import TASKS
from tlresearch.show.elements import Better, Cell, Column, Element, Entry, Facts, Note, Table, Tone, typed
from tlresearch.show.metrics import folded, without_ends
from tlresearch.show.page import Page, Shown, page_of
from tlresearch.tracking.addresses import compare_url
from tlresearch.tracking.records import DIRECTIONS, Record, Runs, State
from tlresearch.understand.comparison.rows import Row, Value
from tlresearch.understand.comparison.significance import LEVEL, Paired, paired_tests

if TYPE_CHECKING:
    pass

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


def compare(*runs: str | Record, sweep: str | None = None, top: int = 10, uri: str | None = None) -> Comparison:
    """Compares recorded runs, or the trials of a sweep.

    Of a sweep the best trials come first; confirmed groups come before them, pruned and failed ones last.

    Args:
        runs: Runs, their ids, beginnings of ids, or names; that of a group of seeds stands for all of them.
        sweep: Name of a study, in place of runs.
        top: Trials of the sweep that are shown.
        uri: The MLflow store; ``MLFLOW_TRACKING_URI``, else SQLite in our home, unless given.

    Raises:
        UserError: If neither or both are named.
        TrackingError: If a run is not there, a name stands for several, or the sweep has no trials.
    """
    if bool(runs) == bool(sweep):
        raise UserError("compare: name two or more runs, or --sweep NAME")
    if sweep:
        return _compare_sweep(Runs(uri), sweep, top)
    store = Runs(uri)
    asked = {run.run_id: run for run in (store.find(each) for each in runs)}
    return _compare(f"{len(asked)} runs", list(asked.values()))


def _compare_sweep(runs: Runs, sweep: str, top: int) -> Comparison:
    parents = runs.study(sweep)
    about = parents[0].tags | parents[0].params
    metric = about.get("tlresearch.metric") or about.get("objective.metric")
    trials = [member for parent in parents for member in parent.members]
    if not trials:
        raise TrackingError(f"the sweep '{sweep}' has no trials yet")
    left_out = len(trials[top:])
    if metric is None:
        return replace(_compare(f"sweep {sweep}", trials[:top], left_out=left_out), tests=())
    stated = about.get("tlresearch.direction") or about.get("objective.direction")
    named: dict[str | None, Direction] = {"minimize": "min", "maximize": "max"}
    direction = named.get(stated) or direction_of(metric, _declared(trials[0])) or "max"
    trials.sort(key=_order(metric, direction))
    return _compare(f"sweep {sweep}, by {metric}", trials[:top], {metric: direction}, left_out=left_out)


def _compare(
    title: str, runs: Sequence[Record], goal: Mapping[str, Direction] | None = None, left_out: int = 0
) -> Comparison:
    goal = goal or {}
    seeds = {run.run_id: run.seeds for run in runs if run.is_group}
    singles = [*runs, *(run for members in seeds.values() for run in members.values())]
    recorded = [*(run.values for run in runs), *(run.metrics for run in singles[len(runs) :])]
    names = _metric_names(recorded, next(iter(goal), None))
    declared = {name: way for run in singles for name, way in _declared(run).items()}
    stated = {name: goal.get(name) or direction_of(name, declared) for name in names}
    directions = {name: direction for name, direction in stated.items() if direction}
    rows = tuple(
        _group_row(run, members, names) if (members := seeds.get(run.run_id)) else _row(run, names, directions)
        for run in runs
    )
    best = {name: best for name, way in directions.items() if (best := _best(rows, name, way))}
    # Single trials of one seed are no ground for a test: that is what `confirm` is for.
    groups = [row for row in rows if row.members]
    ids, experiments = [run.run_id for run in runs], [run.stored.info.experiment_id for run in runs]
    return Comparison(
        title=title,
        rows=rows,
        differing=_differing(rows),
        metrics=tuple(names),
        directions=directions,
        url=compare_url(runs[0].store.ui, ids[:_MOST_IN_URL], experiments),
        left_out=left_out,
        tests=paired_tests(groups, names, {}) if goal else paired_tests(rows, names, best),
        best=best,
    )


def _declared(run: Record) -> Directions:
    """What a run's task declared of its metrics; of a run that did not record it yet, what the task says today."""
    recorded = run.tags.get(DIRECTIONS)
    if recorded is not None:
        declared: Directions = json.loads(recorded)
        return declared
    name = run.params.get("task.name", "")
    if name not in TASKS:
        return {}
    from tlresearch.tasks.build import find_task  # imports torch, which a comparison does without otherwise

    return find_task(name).directions


def _row(run: Record, names: Sequence[str], directions: Mapping[str, Direction]) -> Row:
    return Row(
        run_id=run.run_id,
        name=run.name,
        state=run.state,
        params={} if run.is_group else run.params,
        metrics={name: _value(run, name, directions.get(name)) for name in names if name in run.values},
        seconds=run.seconds,
        runs={int(run.params.get("seed", 0)): run},
        data=run.tags.get("tlresearch.data", ""),
    )


def _group_row(group: Record, seeds: Mapping[int, Record], names: Sequence[str]) -> Row:
    """A group as one row: the mean of each metric over its finished seeds, and the params that the seeds share."""
    from tlresearch.base.statistics import summary

    first = next(iter(seeds.values()))
    metrics = {}
    for name in names:
        by_seed = {seed: run.metrics[name] for seed, run in seeds.items() if name in run.metrics}
        if len(by_seed) == len(seeds):
            spread = summary(list(by_seed.values()))
            metrics[name] = Value(spread.mean, spread.mean, 0, spread, by_seed)
    shared = {key: value for key, value in first.params.items() if key not in ("seed", "seeds")}
    return Row(
        run_id=group.run_id,
        name=group.name,
        state=group.state,
        params={**shared, "seeds": " ".join(map(str, seeds))},
        metrics=metrics,
        seconds=sum(run.seconds for run in seeds.values()),
        runs=seeds,
        members={seed: run.run_id for seed, run in seeds.items()},
        data=first.tags.get("tlresearch.data", ""),
    )


def _value(run: Record, name: str, direction: Direction | None) -> Value:
    if direction is None:  # nobody said which of its values is the best one
        return Value(run.values[name], math.nan, 0)
    better = max if direction == "max" else min
    points = [(value, step) for step, value in run.series(name).items() if not math.isnan(value)]
    best, step = better(points, key=lambda point: point[0], default=(math.nan, 0))
    return Value(run.values[name], best, step)


def _order(metric: str, direction: Direction) -> Callable[[Record], tuple[bool, bool, bool, float]]:
    sign = -1 if direction == "max" else 1

    def key(run: Record) -> tuple[bool, bool, bool, float]:
        value = run.values.get(f"mean/{metric}" if run.is_group else metric, math.nan)
        missing = math.isnan(value)
        return (run.state != "finished", not run.is_group, missing, 0.0 if missing else sign * value)

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
