"""What a ranking comes to: scores of each backbone at each boundary, the page of it, and the figure over depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlresearch.show.elements import Cell, Column, Command, Element, Note, Table, typed
from tlresearch.show.page import Page, Shown, page_of
from tlresearch.tracking.figures import COLOURS, new_figure, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("logme", "h_score", "leep", "nce", "knn", "probe")
"""Scores in the order of the table. LEEP and NCE exist behind the last stage alone."""
TITLES = {"logme": "LogME", "h_score": "H-score", "leep": "LEEP", "nce": "NCE", "knn": "kNN", "probe": "probe"}


@dataclass(frozen=True)
class Ranked:
    """What one backbone came to.

    Attributes:
        name: The backbone.
        weights: Where its weights came from.
        stages: Names of its stages.
        boundaries: Scores by method at each boundary, behind the first stage first.
        depth: The unfreeze depth that is proposed; see `proposed_depth`.
        parameters: Number of values in its parameters.
        megabytes: Size of parameters and buffers, in 10^6 bytes.
        samples_per_second: Throughput of the stages when they were run, training and validation split together.
        seconds: Time the ranking of this backbone took.
        run_id: Its MLflow run.
        problem: Why it has no scores, if so.
    """

    name: str
    weights: str = ""
    stages: tuple[str, ...] = ()
    boundaries: tuple[Mapping[str, float], ...] = ()
    depth: int = 0
    parameters: int = 0
    megabytes: float = 0.0
    samples_per_second: float = math.nan
    seconds: float = 0.0
    run_id: str = ""
    problem: str = ""

    @property
    def scores(self) -> Mapping[str, float]:
        """Scores behind the last stage, by method; none for a backbone that could not be had."""
        return self.boundaries[-1] if self.boundaries else {}


@dataclass(frozen=True)
class Ranking(Shown):
    """All candidates, best first; those that could not be had last.

    Attributes:
        name: The experiment or data set.
        by: The method they are ordered by.
        samples: Training and validation samples.
        backbones: The candidates.
        passes: How often stages were run over a split; 0 if all was there already.
        run_id: The MLflow run whose children are those of the backbones.
        url: Its address in the UI.
    """

    name: str
    by: str
    samples: tuple[int, int]
    backbones: tuple[Ranked, ...]
    passes: int
    run_id: str
    url: str

    @property
    def there(self) -> list[Ranked]:
        """The candidates that have scores."""
        return [ranked for ranked in self.backbones if not ranked.problem]

    @property
    def page(self) -> Page:
        """Scores and costs, a row per backbone each, best first; and what could not be ranked."""
        return self.page_with(boundaries=False)

    def page_with(self, *, boundaries: bool) -> Page:
        """The page, with the scores at every boundary of each backbone if asked for."""
        tables: list[Element] = [self._scores(), self._costs()] if self.there else []
        tables += [_boundaries(ranked) for ranked in self.there] if boundaries else []
        missing = [Note(f"not ranked: {one.name}: {one.problem}", "warning") for one in self.backbones if one.problem]
        return page_of("", *tables, *missing, Command(typed("ui"), f"MLflow run {self.run_id}"))

    def _scores(self) -> Table:
        train, val = self.samples
        source = f"{self.passes} passes" if self.passes else "no pass: all from the cache"
        # LEEP and NCE need the head of the source task, which models of text and sound come without.
        methods = [method for method in METHODS if any(method in ranked.scores for ranked in self.there)]
        return Table(
            (
                Column("backbone"),
                *(Column(TITLES[method], ".3f", better="higher") for method in methods),
                Column("depth", align="right"),
            ),
            tuple(
                (
                    ranked.name,
                    *(ranked.scores.get(method) for method in methods),
                    f"{ranked.depth} of {len(ranked.stages)}",
                )
                for ranked in self.there
            ),
            title=f"{self.name}: {train} training and {val} validation samples, by {TITLES[self.by]}; {source}",
            note="kNN and probe: accuracy on validation, of numbers R2.\n"
            "depth: unfreeze depth that the probe proposes, of the number of stages.",
        )

    def _costs(self) -> Table:
        columns = (
            Column("backbone"),
            Column("parameters", ".2f", unit="M"),
            Column("size", ".1f", unit="MB"),
            Column("time", ".1f", unit="s"),
            Column("speed", ".0f", unit="samples/s"),
        )
        rows = tuple(
            (one.name, one.parameters / 1e6, one.megabytes, one.seconds, one.samples_per_second) for one in self.there
        )
        note = "time: of this ranking. speed: of the stages alone, when they were run."
        return Table(columns, rows, title="What they cost", note=note)


def _boundaries(ranked: Ranked) -> Table:
    """Scores of one backbone at each of its boundaries."""
    methods = [method for method in METHODS if any(method in row for row in ranked.boundaries)]
    rows = []
    for number, (stage, row) in enumerate(zip(ranked.stages, ranked.boundaries, strict=True), 1):
        depth = len(ranked.stages) - number
        values = (row.get(method, "") for method in methods)
        rows.append((number, stage, Cell(depth, starred=depth == ranked.depth), *values))
    return Table(
        (
            Column("boundary", "d"),
            Column("behind stage"),
            Column("depth", "d"),
            *(Column(TITLES[method], ".3f", better="higher") for method in methods),
        ),
        tuple(rows),
        title=f"{ranked.name} ({ranked.weights}): proposed unfreeze depth {ranked.depth}",
    )


def boundary_figure(backbones: Sequence[Ranked]) -> Figure:
    """One panel per method with a line per backbone, over the share of its stages in front of the boundary."""
    methods = [method for method in ("logme", "h_score", "knn", "probe") if method in backbones[0].boundaries[0]]
    figure = new_figure(9.6, 6.8)
    for number, method in enumerate(methods, 1):
        axes = figure.add_subplot(2, 2, number)
        measured = method in ("knn", "probe")
        style(
            axes,
            title="probe; ring: the proposed depth" if method == "probe" else TITLES[method],
            x="share of the stages in front of the boundary",
            y=f"{'accuracy' if 'h_score' in methods else 'R2'} on validation" if measured else "score in training",
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
