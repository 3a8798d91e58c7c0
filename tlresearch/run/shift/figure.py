"""A metric against the shift: over the distance of the features, and over the severity of corruptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tlresearch.tracking.figures import COLOURS, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tlresearch.run.shift.sets import Shifted

AXIS = "mmd"
"""Distance on the x axis: it keeps growing where a classifier tells the sets apart without a mistake."""


def shift_figure(found: Sequence[Shifted], metric: str, source: str, value: float) -> Figure:
    """Draws what a run reaches on further test sets.

    Args:
        found: The sets.
        metric: Name of the metric, without a split.
        source: Name of the source's split.
        value: What is reached there.
    """
    corrupted = [one for one in found if one.corruption]
    figure = new_figure(12.0 if corrupted else 6.4, 4.4)
    axes = figure.add_subplot(1, 2 if corrupted else 1, 1)
    _over_distance(axes, found, metric, source, value)
    if corrupted:
        _over_severity(figure.add_subplot(1, 2, 2), corrupted, metric, value)
    return figure


def _over_distance(axes: Axes, found: Sequence[Shifted], metric: str, source: str, value: float) -> None:
    stage = list(found[0].distances[AXIS])[-1]
    style(
        axes, title=f"{metric.replace('_', ' ')} against shift", x=f"squared MMD of {stage}'s features from the source"
    )
    axes.set_ylabel(metric.replace("_", " "))
    axes.axhline(value, color=COLOURS[-1], linewidth=1, linestyle=(0, (4, 2)))
    axes.plot([0], [value], "o", color=COLOURS[-1], label=f"source ({source})")
    for kind, colour in _colours(found).items():
        chosen = [one for one in found if one.corruption == kind]
        places = [(one.distances[AXIS][stage], one.metrics[metric]) for one in chosen]
        axes.plot(*zip(*places, strict=True), "o", color=colour, label=kind.replace("_", " ") or "other sets")
        if kind:
            for one, place in zip(chosen, places, strict=True):
                axes.annotate(str(one.severity), place, xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.12, y=0.1)
    _name(axes, {one.name: (one.distances[AXIS][stage], one.metrics[metric]) for one in found if not one.corruption})
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)


def _name(axes: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Names points in a column on the right, each joined to its point: names of near points would hide one another."""
    low, high = axes.get_ylim()
    gap, at = 0.055, -1.0  # height of a line, as a share of the axes
    heights = {}
    for name, (_, y) in sorted(places.items(), key=lambda item: item[1][1]):
        at = max((y - low) / (high - low), at + gap)
        heights[name] = at
    above = max(0.0, at - 1.0)
    for name, place in places.items():
        axes.annotate(
            name, place, xytext=(1.02, heights[name] - above), textcoords="axes fraction", fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": "#999999"},
        )  # fmt: skip


def _colours(found: Sequence[Shifted]) -> dict[str, str]:
    """One colour per kind of corruption, the same in both panels; the first is that of other sets."""
    kinds = dict.fromkeys(one.corruption for one in found if one.corruption)
    others = {"": COLOURS[0]} if any(not one.corruption for one in found) else {}
    return others | {kind: COLOURS[1 + number % (len(COLOURS) - 2)] for number, kind in enumerate(kinds)}


def _over_severity(axes: Axes, found: Sequence[Shifted], metric: str, value: float) -> None:
    style(axes, title="over severity", x="severity of the corruption (0: the source)", y=metric.replace("_", " "))
    lines: dict[tuple[str, str], list[Shifted]] = {}
    for one in found:
        entry = one.name.removesuffix(f"_{one.corruption}_{one.severity}")
        lines.setdefault((entry, one.corruption), []).append(one)
    several = len({entry for entry, _ in lines}) > 1
    colours = _colours(found)
    for (entry, kind), points in lines.items():
        ordered = sorted(points, key=lambda one: one.severity)
        severities = [0, *(one.severity for one in ordered)]
        values = [value, *(one.metrics[metric] for one in ordered)]
        label = f"{entry}: {kind.replace('_', ' ')}" if several else kind.replace("_", " ")
        axes.plot(severities, values, marker="o", color=colours[kind], label=label)
    axes.set_xticks(range(6))
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8)
