"""What `tlresearch inspect` shows of a recorded run, and the figures it leaves there."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tlresearch.data.base import SplitName
from tlresearch.finetuning.schedule import FreezeSchedule
from tlresearch.tracking import figures
from tlresearch.tracking.addresses import run_url
from tlresearch.tracking.items import read_items
from tlresearch.tracking.manifest import add_to_ended_run
from tlresearch.tracking.store import Store, connect
from tlresearch.understand.inspection.saliency import Saliency, choose, explain, saliency_figure
from tlresearch.understand.inspection.stages import Finished, StageChange, reopen, stage_changes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run

STAGES = "inspection/stages.json"
STAGES_FIGURE = "figures/stages.png"
SALIENCY_FIGURE = "figures/saliency.png"


def inspect_run(
    run: Run, console: Console, *, saliency: int = 0, names: Sequence[str] = (), picture: Path | None = None
) -> None:
    """Shows what became of each stage of a run, and adds table and figures to it in MLflow.

    Args:
        run: The run.
        console: Where it is shown.
        saliency: Number of images that are explained.
        names: Names of samples that are explained.
        picture: Where the figure of the stages is drawn too.

    Raises:
        UserError: If it kept no weights, or its data or weights are not here any more.
    """
    store = connect()
    finished = reopen(store, run)
    with console.status("comparing the stages"):
        changes = stage_changes(store, run, finished)
    drawn = {STAGES_FIGURE: stages_figure(changes)}
    console.print(as_table(run.info.run_name or "", changes))
    if saliency or names:
        found = _explained(store, run, finished, saliency, names)
        drawn[SALIENCY_FIGURE] = saliency_figure(found)
        for one in found:
            console.print(f"{one.name}: {one.target}, taken for {one.prediction} ({one.probability:.0%})", markup=False)
    if picture is not None:
        drawn[STAGES_FIGURE].savefig(picture, dpi=150)
    content = {"stages": [_plain(asdict(change)) for change in changes]}
    _add(store, run.info.run_id, json.dumps(content, indent=1), drawn)
    url = run_url(store.ui, run.info.experiment_id, run.info.run_id)
    console.print(f"added to the run: {', '.join(drawn)}; see it with: make ui  {url}", highlight=False, soft_wrap=True)


def as_table(name: str, changes: Sequence[StageChange]) -> Table:
    """One row per stage."""
    table = Table(
        title=f"{name}: what became of the stages",
        caption="moved: |w - w0| / |w0| over the parameters; statistics: the same over running means and "
        "variances of norm layers.\nCKA: likeness of the output before and after on validation samples, 1 is equal.\n"
        "gradient: its norm in the last step, in the first and the last epoch that trained the stage.",
        title_justify="left",
        title_style="bold",
        caption_justify="left",
    )
    table.add_column("#", justify="right")
    table.add_column("stage", no_wrap=True)
    for column in ("parameters", "moved", "statistics", "CKA", "gradient"):
        table.add_column(column, justify="right")
    for place, one in enumerate(changes):
        norms = [norm for _, norm in one.gradients]
        table.add_row(
            str(place),
            one.name if one.loaded else f"{one.name} (random)",
            f"{one.parameters:,}",
            *("" if math.isnan(number) else f"{number:.4f}" for number in (one.moved, one.statistics, one.similarity)),
            f"{norms[0]:.2g} -> {norms[-1]:.2g}" if norms else "-",
        )
    return table


def stages_figure(changes: Sequence[StageChange]) -> Figure:
    """How far each stage moved, how its output changed, and its gradient over the epochs."""
    trained = any(norm > 0 for one in changes for _, norm in one.gradients)
    bars = [
        ("Weights: relative change", [one.moved for one in changes], figures.COLOURS[0]),
        ("Norm statistics: relative change", [one.statistics for one in changes], figures.COLOURS[2]),
        ("Output: 1 - CKA", [1 - one.similarity for one in changes], figures.COLOURS[1]),
    ]
    bars = [bar for bar in bars if not all(map(math.isnan, bar[1]))]
    panels = len(bars) + trained
    figure = figures.new_figure(4.0 * panels, max(2.8, 1.6 + 0.3 * len(changes)))
    names = [one.name for one in changes]
    rows = range(len(changes))
    for number, (title, values, colour) in enumerate(bars, 1):
        axes = figure.add_subplot(1, panels, number)
        figures.style(axes, title=title)
        axes.barh(rows, [0.0 if math.isnan(value) else value for value in values], color=colour)
        axes.set_yticks(rows, names if number == 1 else [])
        axes.set_ylim(-0.6, len(changes) - 0.4)
        largest = max((value for value in values if not math.isnan(value)), default=0.0)
        axes.set_xlim(0, 1.05 * largest if largest > 1e-9 else 1.0)  # where all were frozen the axis is not of noise
        axes.locator_params(axis="x", nbins=4)
        axes.grid(color="#EEEEEE", axis="x")
        axes.set_axisbelow(True)
    if trained:
        from matplotlib import colormaps

        axes = figure.add_subplot(1, panels, panels)
        figures.style(axes, title="Gradient norm, last step of the epoch", x="epoch")
        colours = colormaps["viridis"]
        for number, one in enumerate(changes):
            points = [(epoch, norm) for epoch, norm in one.gradients if norm > 0]
            if points:
                shade = colours(number / max(1, len(changes) - 1))
                axes.plot(*zip(*points, strict=True), color=shade, marker="o", markersize=3, label=one.name)
        axes.set_yscale("log")
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figures.whole_numbers(axes)
    return figure


def schedule_picture(schedule: FreezeSchedule) -> Figure:
    """The freeze schedule as planned: what would be trained at which rate if no phase ended early."""
    spans, rates = [], []
    for index, (phase, start) in enumerate(zip(schedule.phases, schedule.starts, strict=True)):
        spans.append(figures.PhaseSpan(phase.name, start, start + phase.epochs))
        for epoch in range(start, start + phase.epochs):
            rates.append(schedule.rates(index, schedule.starts, epoch + 0.5))
    rows = [[row[stage] or None for row in rates] for stage in range(len(schedule.stage_names) + 1)]
    return figures.schedule(spans, [*schedule.stage_names, "head"], rows, title="Freeze schedule as planned")


def _explained(store: Store, run: Run, finished: Finished, count: int, names: Sequence[str]) -> list[Saliency]:
    split: SplitName = "test" if "test" in finished.data.splits else "val"
    rows = choose(finished.data, split, read_items(store, run.info.run_id), count, names)
    return explain(finished, split, rows)


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    """JSON knows no NaN."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def _add(store: Store, run_id: str, text: str, drawn: Mapping[str, Figure]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for path, figure in drawn.items():
            files[path] = Path(folder) / Path(path).name
            figure.savefig(files[path], dpi=150)
        add_to_ended_run(store, run_id, tags={}, texts={STAGES: text}, files=files)
