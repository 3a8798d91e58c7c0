"""Figures of a sweep, from plain numbers: depth against learning rate, course of the search, importance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tlresearch.tracking.figures import COLOURS, new_figure, style, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

State = Literal["complete", "pruned", "failed", "running"]
Direction = Literal["maximize", "minimize"]

_MARKS = {"pruned": "x", "failed": "s", "running": "^"}
_MARK_COLOUR = "#767676"


@dataclass(frozen=True)
class TrialPoint:
    """One trial in the plane of depth and learning rate.

    Attributes:
        depth: Unfreeze depth, in stages.
        lr: Base learning rate.
        value: Objective; `None` unless the trial is complete.
        state: How the trial ended.
    """

    depth: float
    lr: float
    value: float | None
    state: State = "complete"


def depth_lr_map(points: Sequence[TrialPoint], metric: str, direction: Direction = "maximize") -> Figure:
    """Every trial by unfreeze depth and learning rate, coloured by the objective, the best one starred."""
    from matplotlib.lines import Line2D

    done = [point for point in points if point.state == "complete" and point.value is not None]
    figure = new_figure(7.6, 4.6)
    axes = figure.add_subplot()
    style(axes, title=f"{metric} by unfreeze depth and learning rate", x="learning rate (log scale)")
    axes.set_ylabel("unfreeze depth (stages, 0 = head only)")
    axes.set_xscale("log")
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    handles: list[Line2D] = []
    for state, mark in _MARKS.items():
        marked = [point for point in points if point.state == state]
        if marked:
            handles += axes.plot(
                [point.lr for point in marked],
                [_spread(points, point) for point in marked],
                linestyle="",
                marker=mark,
                markersize=7,
                color=_MARK_COLOUR,
                fillstyle="none",
                markeredgewidth=1.4,
                zorder=5,
                label=state,
            )
    if done:
        dots = axes.scatter(
            [point.lr for point in done],
            [_spread(points, point) for point in done],
            c=[point.value or 0.0 for point in done],
            cmap="viridis" if direction == "maximize" else "viridis_r",
            s=85,
            edgecolors="white",
            linewidths=0.8,
            zorder=3,
        )
        figure.colorbar(dots, ax=axes, label=metric)
        best = _best(done, direction)
        star = axes.plot(
            best.lr,
            _spread(points, best),
            linestyle="",
            marker="*",
            markersize=21,
            color=COLOURS[1],
            markeredgecolor="black",
            zorder=4,
            label=f"best: {best.value:.4g} (depth {best.depth:g}, rate {best.lr:.2g})",
        )
        handles = star + handles
    _ticks(axes, sorted({point.depth for point in points}))
    if not points:
        axes.text(0.5, 0.5, "no trial yet", transform=axes.transAxes, ha="center")
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def history(
    values: Sequence[tuple[int, float | None, State]], metric: str, direction: Direction = "maximize"
) -> Figure:
    """Objective of each trial in the order they were started, and the best so far.

    Args:
        values: Number, objective (or last reported value) and state of each trial.
        metric: Name of the objective.
        direction: Whether more or less is better.
    """
    figure = new_figure(7.6, 4.0)
    axes = figure.add_subplot()
    style(axes, title=f"Course of the search: {metric}", x="trial", y=metric)
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)
    whole_numbers(axes)
    ordered = sorted(values, key=lambda value: value[0])
    done = [(number, value) for number, value, state in ordered if state == "complete" and value is not None]
    if done:
        better = max if direction == "maximize" else min
        course = [better(value for _, value in done[: index + 1]) for index in range(len(done))]
        numbers = [number for number, _ in done]
        axes.scatter(numbers, [value for _, value in done], color=COLOURS[0], s=28, label="complete", zorder=3)
        axes.step(numbers, course, where="post", color=COLOURS[1], linewidth=1.8, label="best so far")
    for state, mark in _MARKS.items():
        marked = [(number, value) for number, value, kind in ordered if kind == state]
        valued = [(number, value) for number, value in marked if value is not None]
        if valued:
            xs, ys = zip(*valued, strict=True)
            axes.scatter(xs, ys, marker=mark, color=_MARK_COLOUR, s=28, label=state)
        without = [number for number, value in marked if value is None]
        if without:
            # Trials that never reported stand on the axis, so that none is missing from the picture.
            place = axes.get_xaxis_transform()
            label = None if valued else state
            axes.scatter(
                without,
                [0.02] * len(without),
                marker=mark,
                color=_MARK_COLOUR,
                s=28,
                transform=place,
                label=label,
            )
    if values:
        figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def importance(shares: Mapping[str, float], metric: str) -> Figure:
    """How much of the objective's variation each dimension of the search space explains."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure = new_figure(7.0, max(2.2, 1.3 + 0.42 * len(ordered)))
    axes = figure.add_subplot()
    style(axes, title=f"What decides {metric}", x="importance (share of the explained variation)")
    bars = axes.barh([name for name, _ in ordered], [share for _, share in ordered], color=COLOURS[0], height=0.65)
    axes.bar_label(bars, labels=[f"{share:.0%}" for _, share in ordered], padding=4, fontsize=9)
    axes.set_xlim(0, max([share for _, share in ordered], default=1.0) * 1.12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(axis="y", length=0)
    return figure


def _best(done: Sequence[TrialPoint], direction: Direction) -> TrialPoint:
    sign = 1 if direction == "maximize" else -1
    return max(done, key=lambda point: sign * (point.value or 0.0))


def _spread(points: Sequence[TrialPoint], point: TrialPoint) -> float:
    # Trials at the very same place would hide one another: they stand side by side.
    same = [other for other in points if other.depth == point.depth and other.lr == point.lr]
    number = next(index for index, other in enumerate(same) if other is point)
    return point.depth + 0.09 * (number - (len(same) - 1) / 2)


def _ticks(axes: Axes, depths: Sequence[float]) -> None:
    if 0 < len(depths) <= 14:
        axes.set_yticks(depths, [f"{depth:g}" for depth in depths])
        axes.set_ylim(depths[0] - 0.5, depths[-1] + 0.5)
