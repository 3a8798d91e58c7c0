"""What a ranking looks like: the table, the scores of every boundary, and the figure of scores over depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table

from tlresearch.tracking.figures import COLOURS, new_figure, style
from tlresearch.understand.ranking.result import METHODS, Ranked, Ranking

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"logme": "LogME", "h_score": "H-score", "leep": "LEEP", "nce": "NCE", "knn": "kNN", "probe": "probe"}


def as_table(ranking: Ranking) -> Group:
    """Scores and costs, one row per backbone each, best first; both fit a terminal of 80 columns."""
    train, val = ranking.samples
    source = f"{ranking.passes} passes" if ranking.passes else "no pass: all from the cache"
    there = [one for one in ranking.backbones if not one.problem]
    # LEEP and NCE need the head of the source task, which models of text and sound come without.
    methods = [method for method in METHODS if any(method in one.scores for one in there)]
    scores = _table(
        f"{ranking.name}: {train} training and {val} validation samples, by {TITLES[ranking.by]}; {source}",
        [*(TITLES[method] for method in methods), "depth"],
        "Higher is better. kNN and probe: accuracy on validation.\n"
        "depth: unfreeze depth that the probe proposes, of the number of stages.",
    )
    costs = _table(
        "What they cost",
        ["parameters", "MB", "seconds", "samples/s"],
        "seconds: of this ranking. samples/s: of the stages alone, when they were run.",
    )
    for one in there:
        scores.add_row(one.name, *(_shown(one, method) for method in methods), f"{one.depth} of {len(one.stages)}")
        size, speed = f"{one.megabytes:.1f}", f"{one.samples_per_second:.0f}"
        costs.add_row(one.name, f"{one.parameters / 1e6:.2f} M", size, f"{one.seconds:.1f}", speed)
    return Group(scores, costs)


def _table(title: str, columns: Sequence[str], caption: str) -> Table:
    table = Table(
        title=title,
        caption=caption,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("backbone", overflow="fold", min_width=20)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
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
