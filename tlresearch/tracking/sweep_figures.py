"""Figures of a sweep, from plain numbers: depth against learning rate, course of the search, importance, all trials."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tlresearch.tracking.figures import COLOURS, new_figure, style, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

State = Literal["complete", "pruned", "failed", "running"]
Direction = Literal["maximize", "minimize"]

_MARKS = {"pruned": "x", "failed": "s", "running": "^"}
_MARK_COLOUR = "#767676"
_WIDE = 30.0  # a dimension whose values span more than this factor gets a logarithmic axis


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
    """Draws every trial by unfreeze depth and learning rate, coloured by the objective; a star marks the best."""
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
    """Draws the objective of each trial in the order of their start, and the best so far.

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
            # Trials that reported no value are drawn on the x axis, so that none is missing.
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
    """Draws how much of the objective's variation each dimension of the search space explains."""
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


def parallel_axes(trials: Sequence[tuple[Mapping[str, Any], float]], metric: str, *, maximize: bool) -> Figure:
    """Draws trials as lines over parallel axes, one per dimension of the search space; better trials darker, on top.

    Args:
        trials: Values by dimension, and the objective, of each trial.
        metric: Name of the objective, the last axis.
        maximize: Whether more of it is better.
    """
    from matplotlib import colormaps

    names = list(dict.fromkeys(name for values, _ in trials for name in values))
    scales = [_Scale([values[name] for values, _ in trials if name in values]) for name in names]
    results = _Scale([value for _, value in trials], log=False)
    ranks = {value: number for number, value in enumerate(sorted({value for _, value in trials}))}
    figure = new_figure(max(6.0, 1.9 * (len(names) + 1)), 4.2)
    axes = figure.add_subplot()
    colours = colormaps["viridis_r" if maximize else "viridis"]
    for values, result in sorted(trials, key=lambda trial: trial[1], reverse=not maximize):
        places = [scale(values[n]) if n in values else None for n, scale in zip(names, scales, strict=True)]
        places.append(results(result))
        # A trial may lack a dimension, when that depends on the value of another.
        points = [(number, place) for number, place in enumerate(places) if place is not None]
        axes.plot(
            *zip(*points, strict=True), color=colours(ranks[result] / max(1, len(ranks) - 1)), linewidth=1.7, alpha=0.9
        )
    labels = [*(name.rpartition(".")[2].replace("_", " ") for name in names), metric.replace("/", "/ ")]
    axes.set_xticks(range(len(labels)), [textwrap.fill(label, 16).replace("/ ", "/") for label in labels])
    axes.tick_params(axis="x", length=0, labelsize=9, pad=16)
    axes.set_yticks([])
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlim(-0.3, len(names) + 0.4)
    axes.spines[:].set_visible(False)
    for number, scale in enumerate([*scales, results]):
        axes.axvline(number, color="#BBBBBB", linewidth=0.9, zorder=0)
        for place, text in scale.ticks():
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.9}
            axes.text(number, place, text, fontsize=8, color="#222222", va="center", ha="center", zorder=5, bbox=paper)
    return figure


def _best(done: Sequence[TrialPoint], direction: Direction) -> TrialPoint:
    sign = 1 if direction == "maximize" else -1
    return max(done, key=lambda point: sign * (point.value or 0.0))


def _spread(points: Sequence[TrialPoint], point: TrialPoint) -> float:
    # Trials with equal depth and rate would hide one another, so they are drawn side by side.
    same = [candidate for candidate in points if candidate.depth == point.depth and candidate.lr == point.lr]
    number = next(index for index, candidate in enumerate(same) if candidate is point)
    return point.depth + 0.09 * (number - (len(same) - 1) / 2)


def _ticks(axes: Axes, depths: Sequence[float]) -> None:
    if 0 < len(depths) <= 14:
        axes.set_yticks(depths, [f"{depth:g}" for depth in depths])
        axes.set_ylim(depths[0] - 0.5, depths[-1] + 0.5)


class _Scale:
    """Maps values of a dimension to 0 … 1: numbers linearly or logarithmically, other values by alphabet."""

    def __init__(self, values: Sequence[Any], *, log: bool = True) -> None:
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        self.choices = [] if numbers else sorted({str(value) for value in values})
        self.low: float = min(values) if numbers else 0
        self.high: float = max(values) if numbers else len(self.choices) - 1
        self.log = log and numbers and self.low > 0 and self.high / self.low > _WIDE

    def __call__(self, value: Any) -> float:
        place = self.choices.index(str(value)) if self.choices else value
        low, high = self.low, self.high
        if self.log:
            place, low, high = math.log(place), math.log(low), math.log(high)
        return float((place - low) / (high - low)) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        if self.choices:
            return [(self(choice), choice[:18]) for choice in self.choices]
        ends = [self.low, self.high] if self.high > self.low else [self.low]
        return [(self(end), f"{end:.3g}" if isinstance(end, float) else str(end)) for end in ends]
