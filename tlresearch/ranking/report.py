"""What a ranking looks like: the table, the scores of every boundary, and the figure of scores over depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tlresearch.ranking.result import METHODS, Ranked, Ranking
from tlresearch.tracking.figures import COLOURS, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"logme": "LogME", "h_score": "H-score", "leep": "LEEP", "nce": "NCE", "knn": "kNN", "probe": "probe"}


def as_table(ranking: Ranking) -> Table:
    """One row per backbone, best first; what could not be had says why."""
    train, val = ranking.samples
    source = f"{ranking.passes} passes" if ranking.passes else "no pass: all from the cache"
    table = Table(
        title=f"{ranking.name}: {train} training and {val} validation samples, by {TITLES[ranking.by]}; {source}",
        caption="Higher is better. kNN and probe: accuracy on validation. depth: unfreeze depth that the probe "
        "proposes.\nsamples/s: of the stages alone, when they were run.",
        title_justify="left",
        title_style="bold",
        caption_justify="left",
    )
    table.add_column("backbone", overflow="fold")
    columns = [*TITLES.values(), "depth", "of", "s", "params", "MB", "samples/s"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for one in ranking.backbones:
        if one.problem:
            continue
        table.add_row(
            one.name,
            *(_shown(one, method) for method in METHODS),
            str(one.depth),
            str(len(one.stages)),
            f"{one.seconds:.1f}",
            f"{one.parameters / 1e6:.1f}M",
            f"{one.megabytes:.0f}",
            f"{one.samples_per_second:.0f}",
        )
    return table


def boundary_table(one: Ranked) -> Table:
    """Scores of one backbone at each of its boundaries."""
    table = Table(
        title=f"{one.name} ({one.weights}): proposed unfreeze depth {one.depth}",
        title_justify="left",
        title_style="bold",
    )
    for column in ("boundary", "behind stage", "depth", *(TITLES[method] for method in METHODS)):
        table.add_column(column, justify="left" if column == "behind stage" else "right")
    for number, (stage, row) in enumerate(zip(one.stages, one.boundaries, strict=True), 1):
        depth = len(one.stages) - number
        mark = " *" if depth == one.depth else ""
        values = (f"{row[method]:.3f}" if method in row else "" for method in METHODS)
        table.add_row(str(number), stage, f"{depth}{mark}", *values)
    return table


def boundary_figure(backbones: Sequence[Ranked]) -> Figure:
    """One panel per method with a line per backbone, over the share of its stages in front of the boundary."""
    methods = ("logme", "h_score", "knn", "probe")
    figure = new_figure(9.6, 6.8)
    for number, method in enumerate(methods, 1):
        axes = figure.add_subplot(2, 2, number)
        accuracy = method in ("knn", "probe")
        style(
            axes,
            title="probe; ring: the proposed depth" if method == "probe" else TITLES[method],
            x="share of the stages in front of the boundary",
            y="accuracy on validation" if accuracy else "score on training samples",
        )
        for index, one in enumerate(backbones):
            places = [(place + 1) / len(one.stages) for place in range(len(one.stages))]
            values = [row[method] for row in one.boundaries]
            colour = COLOURS[index % len(COLOURS)]
            line = "-" if index < len(COLOURS) else "--"
            axes.plot(places, values, line, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=one.name)
            chosen = len(one.stages) - one.depth - 1
            if method == "probe" and chosen >= 0:
                axes.plot(places[chosen], values[chosen], "o", color=colour, markersize=9, fillstyle="none")
        axes.set_xlim(0, 1.03)
        axes.grid(color="#EEEEEE")
        axes.set_axisbelow(True)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9)
    return figure


def as_dict(ranking: Ranking) -> dict[str, Any]:
    """The whole ranking as plain values."""
    return asdict(ranking)


def _shown(one: Ranked, method: str) -> str:
    return f"{one.scores[method]:.3f}" if method in one.scores else "-"
