"""The figure of a metric under shift: against the distance of the features, and the severity of corruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tlresearch.tracking.figures import COLOURS, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tlresearch.run.shift.sets import Shifted

AXIS = "mmd"
"""Distance on the x axis. Unlike the proxy A-distance it still grows when a classifier separates the sets perfectly."""


def shift_figure(results: Sequence[Shifted], metric: str, source: str, value: float) -> Figure:
    """Draws the results of a run on further test sets.

    Args:
        results: The results.
        metric: Name of the metric, without a split.
        source: Name of the source's split.
        value: The metric on the source.
    """
    corrupted = [shifted for shifted in results if shifted.corruption]
    figure = new_figure(12.0 if corrupted else 6.4, 4.4)
    axes = figure.add_subplot(1, 2 if corrupted else 1, 1)
    _over_distance(axes, results, metric, source, value)
    if corrupted:
        _over_severity(figure.add_subplot(1, 2, 2), corrupted, metric, value)
    return figure


def _over_distance(axes: Axes, results: Sequence[Shifted], metric: str, source: str, value: float) -> None:
    stage = list(results[0].distances[AXIS])[-1]
    style(
        axes, title=f"{metric.replace('_', ' ')} against shift", x=f"squared MMD of {stage}'s features from the source"
    )
    axes.set_ylabel(metric.replace("_", " "))
    axes.axhline(value, color=COLOURS[-1], linewidth=1, linestyle=(0, (4, 2)))
    axes.plot([0], [value], "o", color=COLOURS[-1], label=f"source ({source})")

    def place(shifted: Shifted) -> tuple[float, float]:
        return shifted.distances[AXIS][stage], shifted.metrics[metric]

    for kind, colour in _colours(results).items():
        chosen = [shifted for shifted in results if shifted.corruption == kind]
        places = [place(shifted) for shifted in chosen]
        axes.plot(*zip(*places, strict=True), "o", color=colour, label=kind.replace("_", " ") or "other sets")
        if kind:
            for shifted in chosen:
                severity = str(shifted.severity)
                axes.annotate(severity, place(shifted), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.12, y=0.1)
    _name_points(axes, {shifted.name: place(shifted) for shifted in results if not shifted.corruption})
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)


def _name_points(axes: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Writes the names of points in a column on the right, with a line to each point.

    Next to the points, names of near points would hide one another.
    """
    low, high = axes.get_ylim()
    gap, at = 0.055, -1.0  # height of a line of text, as a share of the axes
    heights = {}
    # From the lowest point upwards, each name at the height of its point, or right above the previous name.
    for name, (_, y) in sorted(places.items(), key=lambda item: item[1][1]):
        at = max((y - low) / (high - low), at + gap)
        heights[name] = at
    above = max(0.0, at - 1.0)  # what sticks out at the top moves all names down
    for name, place in places.items():
        axes.annotate(
            name, place, xytext=(1.02, heights[name] - above), textcoords="axes fraction", fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": "#999999"},
        )  # fmt: skip


def _colours(results: Sequence[Shifted]) -> dict[str, str]:
    """Returns a colour for each kind of corruption, the same in both panels; the first is for sets without one."""
    kinds = dict.fromkeys(shifted.corruption for shifted in results if shifted.corruption)
    uncorrupted = {"": COLOURS[0]} if any(not shifted.corruption for shifted in results) else {}
    return uncorrupted | {kind: COLOURS[1 + number % (len(COLOURS) - 2)] for number, kind in enumerate(kinds)}


def _over_severity(axes: Axes, results: Sequence[Shifted], metric: str, value: float) -> None:
    style(axes, title="over severity", x="severity of the corruption (0: the source)", y=metric.replace("_", " "))
    lines: dict[tuple[str, str], list[Shifted]] = {}
    for shifted in results:
        entry = shifted.name.removesuffix(f"_{shifted.corruption}_{shifted.severity}")
        lines.setdefault((entry, shifted.corruption), []).append(shifted)
    several = len({entry for entry, _ in lines}) > 1
    colours = _colours(results)
    for (entry, kind), points in lines.items():
        ordered = sorted(points, key=lambda shifted: shifted.severity)
        severities = [0, *(shifted.severity for shifted in ordered)]
        values = [value, *(shifted.metrics[metric] for shifted in ordered)]
        label = f"{entry}: {kind.replace('_', ' ')}" if several else kind.replace("_", " ")
        axes.plot(severities, values, marker="o", color=colours[kind], label=label)
    axes.set_xticks(range(6))
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
