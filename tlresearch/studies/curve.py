"""Learning curves: a metric against the number of labels, for several freeze schedules with several seeds each.

What is run, the curve that comes of it, and from how many labels on a schedule pays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tlresearch.base.direction import direction_of
from tlresearch.base.errors import UserError
from tlresearch.base.statistics import PairedTest, Summary, summary
from tlresearch.config.load import Loaded, Overrides, load_experiment, load_variants, override_texts, revise
from tlresearch.config.schema import ExperimentConfig
from tlresearch.show import markdown
from tlresearch.show.elements import Cell, Column, Command, Entry, Note, Table, typed
from tlresearch.show.page import Page, Shown, page_of
from tlresearch.studies.family import fit_family, paired, values
from tlresearch.studies.seeds import GroupResult
from tlresearch.tasks.build import declared
from tlresearch.tasks.watched import monitored
from tlresearch.tracking.figures import COLOURS, new_figure, style
from tlresearch.tracking.run import JournalRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Point:
    """One schedule with one number of labels.

    Attributes:
        schedule: Name of the schedule.
        labels: Training samples per class.
        reached: The metric over the seeds.
        gap: Gap between training and validation over the seeds: see `training.gaps`.
        against: Gain over the first schedule with the same labels, seed by seed: positive is better; ``None`` for the
            first schedule itself.
        run_id: MLflow run of the group.
    """

    schedule: str
    labels: int
    reached: Summary
    gap: Summary | None
    against: PairedTest | None
    run_id: str


@dataclass(frozen=True)
class Curve(Shown):
    """All points.

    Attributes:
        experiment: Name of the experiment.
        metric: The metric.
        points: The points, schedule by schedule, labels rising.
        run_id: The parent MLflow run.
        seconds: Wall time of all runs, also of those finished earlier.
    """

    experiment: str
    metric: str
    points: tuple[Point, ...]
    run_id: str
    seconds: float

    @property
    def schedules(self) -> list[str]:
        """The schedules in the order they were asked for."""
        return list(dict.fromkeys(point.schedule for point in self.points))

    @property
    def labels(self) -> list[int]:
        """The numbers of labels, rising."""
        return sorted({point.labels for point in self.points})

    @property
    def page(self) -> Page:
        """A row per number of labels, a column per schedule; then the gaps, and what they say."""
        seeds = self.points[0].reached.n
        columns: list[tuple[Column, str, Callable[[Point], Entry]]] = []
        for number, schedule in enumerate(self.schedules):
            columns.append((Column(schedule, ".3f"), schedule, _reached))
            if number:
                columns.append((Column(f"gain of {schedule}", "+.3f"), schedule, _gain))
        gaps = [(Column(schedule, "+.3f"), schedule, _gap) for schedule in self.schedules]
        title = f"{self.experiment}: {self.metric} over labels per class, {seeds} seeds, {self.seconds:.0f} s"
        note = (
            "mean, and 95 % bootstrap interval of the mean; gain: paired with the first schedule, seed by seed, "
            "★ where its interval lies above 0"
        )
        return page_of(
            "",
            self._table(columns, title, note),
            self._table(gaps, f"{self.metric.partition('/')[2]}: train - val"),
            *map(Note, remarks(self)),
            *([Command(typed("ui"), f"MLflow run {self.run_id}")] if self.run_id else []),
        )

    def _table(
        self, columns: Sequence[tuple[Column, str, Callable[[Point], Entry]]], title: str, note: str = ""
    ) -> Table:
        rows = []
        for labels in self.labels:
            points = {point.schedule: point for point in self.points if point.labels == labels}
            rows.append((labels, *(entry(points[schedule]) for _, schedule, entry in columns)))
        heads = (Column("labels", align="right"), *(column for column, _, _ in columns))
        return Table(heads, tuple(rows), title=title, note=note)

    def of(self, schedule: str) -> list[Point]:
        """The points of a schedule, labels rising."""
        return [point for point in self.points if point.schedule == schedule]


@dataclass(frozen=True)
class Payoff:
    """From how many labels on a schedule is better than the first one.

    Attributes:
        schedule: The schedule.
        point: The smallest number of labels at which the interval of the paired gain lies above 0; ``None``: at none.
        not_at: Larger numbers of labels at which it does not.
    """

    schedule: str
    point: Point | None
    not_at: tuple[int, ...]


def payoffs(result: Curve) -> list[Payoff]:
    """Says for every schedule but the first from how many labels on it is the better one."""
    found = []
    for schedule in result.schedules[1:]:
        points = result.of(schedule)
        better = [point for point in points if point.against and point.against.low > 0]
        later = [point.labels for point in points if better and point.labels > better[0].labels and point not in better]
        found.append(Payoff(schedule, better[0] if better else None, tuple(later)))
    return found


def remarks(result: Curve) -> list[str]:
    """The payoffs in words, and what so many seeds can show."""
    first = result.schedules[0]
    lines = []
    for payoff in payoffs(result):
        if payoff.point is None or payoff.point.against is None:
            text = f"nowhere better than {first}: with no number of labels is the interval of the paired gain above 0"
        else:
            gain = payoff.point.against
            text = (
                f"better than {first} from {payoff.point.labels} per class on "
                f"({gain.difference:+.3f}, {gain.low:+.3f} to {gain.high:+.3f})"
            )
            text += f", but not with {', '.join(map(str, payoff.not_at))}" if payoff.not_at else ""
        lines.append(f"{payoff.schedule}: {text}")
    seeds = result.points[0].reached.n
    if seeds < 6 and len(result.schedules) > 1:
        lines.append(
            f"{seeds} seeds: an interval of {seeds} differences lies within their range, and is too narrow; "
            f"no p-value can be below {2.0 ** (1 - seeds):.3g}. Six seeds or more can show a difference"
        )
    return lines


def fit_curve(
    experiment: str | Path,
    labels: Sequence[int],
    schedules: Sequence[str],
    overrides: Overrides = (),
    *,
    seeds: int = 3,
    metric: str | None = None,
    console: Console | None = None,
) -> Curve:
    """Runs an experiment with every number of labels, schedule and seed; what has finished is not run again.

    Each seed draws other labelled samples, the same for every schedule, unless `data.split_seed` is given.

    Args:
        experiment: Name under ``experiments/`` or path of a YAML file.
        labels: Training samples per class.
        schedules: Names of `freeze.schedule`, ``depth=N``, or variants of the experiment. The first one is what the
            others are compared with.
        overrides: Values by full key, for every run.
        seeds: Number of seeds: 0, 1, ….
        metric: The metric; the monitored one on the test split, else on validation.
        console: Where progress is shown.

    Raises:
        UserError: If an argument, config, data or weights are wrong.
    """
    if not labels or min(labels) < 1:
        raise UserError(f"curve: --labels are numbers of training samples per class from 1, but got {list(labels)}")
    if not schedules or len(set(schedules)) < len(schedules):
        raise UserError(f"curve: --schedules names each schedule once, at least one, but got {list(schedules)}")
    if seeds < 1:
        raise UserError(f"curve: --seeds is a number of seeds from 1, but got {seeds}")
    members = {
        (schedule, number): revise(loaded, {"data.labels_per_class": number})
        for schedule, loaded in _schedules(experiment, schedules, overrides).items()
        # The largest number first: what the data have too few samples for is found before anything has trained.
        for number in sorted(set(labels), reverse=True)
    }
    first = next(iter(members.values()))
    name = first.config.name
    by_name = {_member(*key): loaded for key, loaded in members.items()}
    with fit_family(f"{name}: learning curve", by_name, range(seeds), console=console) as family:
        groups = {key: family.groups[_member(*key)] for key in members}
        metric = metric or _default_metric(first.config, next(iter(groups.values())))
        rising = sorted(groups, key=lambda key: (schedules.index(key[0]), key[1]))
        mode = direction_of(metric, declared(first.config.task)) or first.config.trainer.mode or "max"
        points = [_point(key, groups, (schedules[0], key[1]), metric, mode) for key in rising]
        seconds = sum(group.seconds for group in groups.values())
        result = Curve(name, metric, tuple(points), family.run.run_id, seconds)
        _log(family.run, result)
    return result


def _schedules(
    experiment: str | Path, schedules: Sequence[str], overrides: Overrides
) -> dict[str, Loaded[ExperimentConfig]]:
    given = [text.partition("=")[0] for text in override_texts(overrides)]
    drawn = {} if "data.split_seed" in given else {"data.split_seed": "${seed}"}
    base = load_experiment(experiment, overrides)
    variants = load_variants(experiment, overrides) if base.config.variants else {}
    found = {}
    for schedule in schedules:
        preset, _, depth = schedule.partition("=")
        changes: dict[str, Any] = {"freeze.schedule": preset, "freeze.unfreeze_depth": None}
        if depth:
            changes["freeze.unfreeze_depth"] = int(depth) if depth.isdigit() else depth
        loaded = revise(variants[schedule], {}) if schedule in variants else revise(base, changes)
        found[schedule] = revise(loaded, drawn)
    return found


def _member(schedule: str, labels: int) -> str:
    return f"{schedule}, {labels} per class"


def _default_metric(config: ExperimentConfig, group: GroupResult) -> str:
    watched = monitored(config).partition("/")[2]
    return f"test/{watched}" if f"test/{watched}" in group.metrics else f"val/{watched}"


def _point(
    key: tuple[str, int],
    groups: Mapping[tuple[str, int], GroupResult],
    base: tuple[str, int],
    metric: str,
    mode: str,
) -> Point:
    group, gap = groups[key], f"gap/{metric.partition('/')[2]}"
    better, worse = (group, groups[base]) if mode == "max" else (groups[base], group)
    return Point(
        schedule=key[0],
        labels=key[1],
        reached=summary(values(group, metric)),
        gap=group.metrics.get(gap),
        against=paired(better, worse, metric) if key != base else None,
        run_id=group.run_id,
    )


def _log(run: JournalRun, result: Curve) -> None:
    content = {**asdict(result), "remarks": remarks(result)}
    run.log_text(json.dumps(content, indent=1), "curve.json")
    run.log_text(markdown.render(result.page), "curve.md")
    run.log_figure(curve_figure(result), "figures/curve.png")
    for point in result.points:
        run.log_metrics({f"curve/{point.schedule}/{result.metric}": point.reached.mean}, step=point.labels)


def _reached(point: Point) -> Entry:
    value = point.reached
    return Cell(value.mean, note=f"{value.low:.3f} to {value.high:.3f}")


def _gain(point: Point) -> Entry:
    gain = point.against
    if gain is None:
        return ""
    interval = f"{gain.low:+.3f} to {gain.high:+.3f}"
    return Cell(gain.difference, note=interval, starred=gain.low > 0)


def _gap(point: Point) -> Entry:
    return point.gap.mean if point.gap else ""


def curve_figure(result: Curve) -> Figure:
    """Draws the metric against the number of labels, with the interval of each mean."""
    figure = new_figure(6.8, 4.4)
    axes = figure.add_subplot()
    seeds = result.points[0].reached.n
    style(axes, title=f"{result.experiment}, {seeds} seeds", x="labels per class", y=result.metric.replace("_", " "))
    axes.set_xscale("log")
    for number, schedule in enumerate(result.schedules):
        points = result.of(schedule)
        # A little beside each other, so that intervals do not hide one another.
        places = [point.labels * 1.03 ** (number - (len(result.schedules) - 1) / 2) for point in points]
        means = [point.reached.mean for point in points]
        below = [point.reached.mean - point.reached.low for point in points]
        above = [point.reached.high - point.reached.mean for point in points]
        colour = COLOURS[number % len(COLOURS)]
        axes.errorbar(places, means, [below, above], color=colour, marker="o", markersize=4, capsize=3, label=schedule)
    axes.set_xticks(result.labels, [str(labels) for labels in result.labels])
    axes.minorticks_off()
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
    return figure
