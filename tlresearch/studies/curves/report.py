"""A learning curve: its points, from where on a schedule pays, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from tlresearch.base.statistics import PairedTest, Summary
from tlresearch.tracking.figures import COLOURS, new_figure, style

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
class Curve:
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


def as_tables(result: Curve) -> list[Table]:
    """The curve for the terminal: a row per number of labels, a column per schedule; then the gaps."""
    seeds = result.points[0].reached.n
    parts = [
        (
            f"{result.experiment}: {result.metric} over labels per class, {seeds} seeds, {result.seconds:.0f} s",
            "mean, and 95 % bootstrap interval of the mean; gain: paired with the first schedule, seed by seed",
            _values(result),
        ),
        (f"{result.metric.partition('/')[2]}: train - val", None, _gaps(result)),
    ]
    tables = []
    for title, caption, (head, *rows) in parts:
        table = Table(
            *head,
            title=title,
            caption=caption,
            title_justify="left",
            caption_justify="left",
            title_style="bold",
        )
        for column in table.columns:
            column.justify, column.overflow = "right", "fold"
        for row in rows:
            table.add_row(*row)
        tables.append(table)
    return tables


def as_markdown(result: Curve) -> str:
    """The curve as Markdown: the tables and what they say."""
    lines = [f"{result.experiment}: `{result.metric}` over labels per class, {result.points[0].reached.n} seeds."]
    for title, (head, *rows) in (("", _values(result)), ("Train - val:", _gaps(result))):
        lines += ["", title, ""] if title else [""]
        lines += ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
        lines += ["| " + " | ".join(row).replace("\n", "<br>") + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {line}" for line in remarks(result))]) + "\n"


def _values(result: Curve) -> list[list[str]]:
    """Head and rows: what each schedule reaches, and gains over the first one."""
    columns: list[tuple[str, str, Callable[[Point], str]]] = []
    for number, schedule in enumerate(result.schedules):
        columns.append((schedule, schedule, _reached))
        if number:
            columns.append((schedule, f"gain of {schedule}", _gain))
    return _grid(result, columns)


def _gaps(result: Curve) -> list[list[str]]:
    return _grid(result, [(schedule, schedule, _gap) for schedule in result.schedules])


def _grid(result: Curve, columns: Sequence[tuple[str, str, Callable[[Point], str]]]) -> list[list[str]]:
    rows = [["labels", *(title for _, title, _ in columns)]]
    for labels in result.labels:
        points = {point.schedule: point for point in result.points if point.labels == labels}
        rows.append([str(labels), *(text(points[schedule]) for schedule, _, text in columns)])
    return rows


def _reached(point: Point) -> str:
    found = point.reached
    return f"{found.mean:.3f}\n{found.low:.3f} to {found.high:.3f}"


def _gain(point: Point) -> str:
    gain = point.against
    if gain is None:
        return ""
    mark = " *" if gain.low > 0 else ""
    return f"{gain.difference:+.3f}{mark}\n{gain.low:+.3f} to {gain.high:+.3f}"


def _gap(point: Point) -> str:
    return f"{point.gap.mean:+.3f}" if point.gap else ""


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
