"""The trials of a study as lines over parallel axes, one axis per dimension of the search space."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tlresearch.tracking.figures import new_figure

_WIDE = 30.0  # values that span more than this factor are shown on a logarithmic axis


def parallel_png(trials: Sequence[tuple[Mapping[str, Any], float]], metric: str, *, maximize: bool) -> bytes:
    """Draws trials, the better ones darker and on top.

    Args:
        trials: Values by dimension, and the objective of each.
        metric: Name of the objective, the last axis.
        maximize: Whether more of it is better.

    Returns:
        A PNG picture.
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
        # A dimension that this trial did not have is passed over.
        points = [(number, place) for number, place in enumerate(places) if place is not None]
        axes.plot(
            *zip(*points, strict=True), color=colours(ranks[result] / max(1, len(ranks) - 1)), linewidth=1.7, alpha=0.9
        )
    axes.set_xticks(range(len(names) + 1), [*(name.rpartition(".")[2].replace("_", " ") for name in names), metric])
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
    stream = io.BytesIO()
    figure.savefig(stream, dpi=150)
    return stream.getvalue()


class _Scale:
    """Places of values between 0 and 1: numbers linear or logarithmic, other values side by side."""

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
